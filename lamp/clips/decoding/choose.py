"""The decoders behind training clips: video files, animated pictures, folders of images."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ClipError
from .pictures import HEAD, IMAGE_ENDINGS, animated_frames, folder_frames, is_picture
from .reader import Readable, SourceFrame, Watch, nothing, open_clip, reading
from .video_file import VideoFile

_NEAR = 0.005  # a header's rate that is nearer than this to the times' own is the exact one


def source_frames(
    clip: Readable,
    start: float = 0.0,
    end: float | None = None,
    pulse: Callable[[], None] = nothing,
) -> Generator[SourceFrame, None, None]:
    """All frames of a clip in display order; close the iterator to let go of the file.

    With `start` and `end`, in seconds, only the frames from the one (counted) to the other (not
    counted); frames without a time all belong. `pulse` is called now and then while a decoder
    works, and may raise. Raises ClipError if the clip cannot be read to the point where the
    iterator is left; the error tells after how many frames.
    """
    watch = Watch(clip.name, pulse)
    count = 0
    with _watched(clip, watch, lambda: f" after frame {count}" if count else ""):
        with contextlib.closing(_frames(clip, start, watch)) as source:
            for frame in source:
                if frame.time is not None and end is not None and frame.time >= end:
                    break
                if frame.time is None or frame.time >= start:
                    count += 1
                    yield frame
        if not count:
            part = " at the chosen time" if start or end is not None else ""
            raise ClipError(f"'{clip.name}' has no pictures in it{part}. Leave it out.")


def count_frames(clip: Readable, pulse: Callable[[], None] = nothing) -> int:
    """About how many frames a clip has, without decoding a film. Raises as `source_frames`."""
    watch = Watch(clip.name, pulse)
    with _watched(clip, watch):
        if isinstance(clip, Path) and clip.is_dir():
            return len(image_files(clip))
        if _is_picture(clip):
            return sum(1 for _ in animated_frames(clip, watch))
        with contextlib.closing(VideoFile(clip, watch)) as video:
            return video.count()


def check_kind(clip: Readable) -> None:
    """See that a file is a clip of a kind that is read, before others open it who would follow a
    play list. Raises ClipError."""
    watch = Watch(clip.name)
    with _watched(clip, watch):
        if not _is_picture(clip):
            VideoFile(clip, watch).close()


@dataclass
class Tally:
    """Counts the frames that pass by, and tells their rate by their times."""

    count: int = 0
    ended: bool = False
    _said: float | None = None
    _times: list[float] = field(default_factory=list)  # the first and the last one

    def watch(self, frames: Iterator[SourceFrame]) -> Iterator[SourceFrame]:
        """The same frames."""
        for frame in frames:
            self.count += 1
            self._said = frame.told.rate
            if frame.time is not None:
                self._times = [*self._times[:1], frame.time]
            yield frame
        self.ended = True

    @property
    def rate(self) -> float | None:
        """Frames a second; the header's word is only taken where the times bear it out."""
        if not self._times:
            return None
        first, last = self._times[0], self._times[-1]
        if last <= first:
            return self._said
        measured = (self.count - 1) / (last - first)
        said = self._said or 0.0
        return said if abs(measured - said) < _NEAR * measured else round(measured, 6)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, in natural order."""
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
    ]
    return sorted(files, key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts runs of digits by their value."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@contextlib.contextmanager
def _watched(clip: Readable, watch: Watch, after: Callable[[], str] = lambda: "") -> Iterator[None]:
    """As `reading`, but what the pulse raised comes out as it is."""
    try:
        with reading(clip, after=after):
            yield
    except ClipError:
        if watch.raised is not None:
            raise watch.raised from None
        raise


def _frames(clip: Readable, start: float, watch: Watch) -> Generator[SourceFrame, None, None]:
    if isinstance(clip, Path) and clip.is_dir():
        yield from folder_frames(image_files(clip))
    elif _is_picture(clip):
        yield from animated_frames(clip, watch)
    else:
        with contextlib.closing(VideoFile(clip, watch)) as video:
            yield from video.frames(start)


def _is_picture(clip: Readable) -> bool:
    with open_clip(clip) as file:
        return is_picture(file.read(HEAD))
