"""Choose the decoder for a clip: video file, animated picture or folder of images."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import ClipError
from .pictures import HEAD, IMAGE_ENDINGS, animated_frames, folder_frames, is_picture
from .reader import Readable, SourceFrame, Watch, nothing, open_clip, reading
from .video_file import VideoFile

_ROUNDED = 0.6e-3
"""Seconds between a frame's time and a mark at it: some containers round times to milliseconds."""
_NEAR = 0.005  # relative; a header's rate this close to the timestamps' rate is the exact one


def source_frames(
    clip: Readable,
    start: float = 0.0,
    end: float | None = None,
    pulse: Callable[[], None] = nothing,
) -> Generator[SourceFrame, None, None]:
    """All frames of a clip in display order. Close the iterator to release the file.

    `start` (inclusive) and `end` (exclusive), in seconds, select frames by time; frames without a
    time are always included. `pulse` is called regularly while a decoder works, and may raise.
    Raises ClipError, with the number of the last good frame, if the clip cannot be decoded.
    """
    watch = Watch(clip.name, pulse)
    count = 0
    with _watched(clip, watch, lambda: f" after frame {count}" if count else ""):
        with contextlib.closing(_frames(clip, start, watch)) as source:
            for frame in _between(source, start, end):
                count += 1
                yield frame
                watch.resumed()
        if not count:
            part = " in the chosen time range" if start or end is not None else ""
            raise ClipError(f"'{clip.name}' has no pictures{part}. Remove it.")


def _between(
    frames: Iterator[SourceFrame], start: float, end: float | None
) -> Iterator[SourceFrame]:
    shown = (frame for frame in frames if frame.time is None or frame.time >= start - _ROUNDED)
    if end is None:
        yield from shown
        return
    last: SourceFrame | None = None
    more = False
    for frame in shown:
        if more := frame.time is not None and frame.time >= end - _ROUNDED:
            break
        if last is not None:
            yield last
        last = frame
    if last is not None and last.time is not None:
        left = end - last.time
        # Until the next one comes, also where the file does not state how long that is.
        last = replace(last, held=left if more else last.held and min(last.held, left))
    if last is not None:
        yield last


def count_frames(clip: Readable, pulse: Callable[[], None] = nothing) -> int:
    """The approximate number of frames, without decoding videos. Raises as `source_frames`."""
    watch = Watch(clip.name, pulse)
    with _watched(clip, watch):
        if isinstance(clip, Path) and clip.is_dir():
            return len(image_files(clip))
        if _is_picture(clip):
            return sum(1 for _ in animated_frames(clip, watch))
        with contextlib.closing(VideoFile(clip, watch)) as video:
            return video.count()


def check_kind(clip: Readable) -> None:
    """Check that a file is a supported clip, before a program that follows playlists opens it.
    Raises ClipError."""
    watch = Watch(clip.name)
    with _watched(clip, watch):
        if not _is_picture(clip):
            VideoFile(clip, watch).close()


@dataclass
class Tally:
    """Counts frames as they pass, and measures their rate."""

    count: int = 0
    ended: bool = False
    _stated: float | None = None
    _times: list[float] = field(default_factory=list)  # the first and the last one

    def watch(self, frames: Iterator[SourceFrame]) -> Iterator[SourceFrame]:
        """The same frames."""
        for frame in frames:
            self.count += 1
            self._stated = frame.facts.rate
            if frame.time is not None:
                self._times = [*self._times[:1], frame.time]
            yield frame
        self.ended = True

    @property
    def rate(self) -> float | None:
        """Frames per second. The header's rate counts only where the timestamps confirm it."""
        if not self._times:
            return None
        first, last = self._times[0], self._times[-1]
        if last <= first:
            return self._stated
        measured = (self.count - 1) / (last - first)
        stated = self._stated or 0.0
        return stated if abs(measured - stated) < _NEAR * measured else round(measured, 6)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, in natural order."""
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
    ]
    return sorted(files, key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A sort key that orders runs of digits by value."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@contextlib.contextmanager
def _watched(clip: Readable, watch: Watch, after: Callable[[], str] = lambda: "") -> Iterator[None]:
    """As `reading`, but an exception from the pulse passes unchanged."""
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
