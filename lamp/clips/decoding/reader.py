"""How a clip's bytes are opened and watched, and how errors of the decoders become sentences."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ...errors import ClipError, LampError
from ...plain import log

MAX_PIXELS = 2**26
"""Of a frame: twice 8K. A file of a few bytes can claim any size, and would be given the memory."""
MOST_FRAMES = 100_000
"""Frames that one reading decodes at the most: an hour of film, and a few kilobytes of nothing."""
PATIENCE = 30.0
"""Seconds that a decoder may read on without giving a picture."""
_BETWEEN_PULSES = 0.2  # seconds


@dataclass(frozen=True)
class VideoBytes:
    """A video file that another node keeps in memory."""

    name: str
    data: bytes


Readable = Path | VideoBytes
"""What the decoders read: a file, a folder of images, a file in memory."""


@dataclass
class Told:
    """What a clip's header says of its rate (frames a second, None if nothing), and what the user
    should know of how it is read: sentences without a subject, for `'clip.mp4' ...`."""

    rate: float | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a sentence, once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class SourceFrame:
    """A frame that is decoded but not yet turned into pixels: many are only passed by."""

    time: float | None
    """Seconds from the clip's own zero; None where the source has no clock."""
    load: Callable[[], Tensor]
    """Gives the picture, upright and in square pixels: ``h w 3`` uint8, on black."""
    held: float | None = None
    """Seconds for which the file shows it, where it tells that."""
    told: Told = field(default_factory=Told)
    """Of the whole clip: the same object for all its frames."""


def nothing() -> None:
    """A pulse that lets nothing through."""


class Watch:
    """Ends a reading that makes no progress, and lets a cancel through while it waits.

    ``pulse`` is called now and then and may raise; what it raised is kept in ``raised``, because
    FFmpeg calls us from within and would turn it into an error of its own.
    """

    def __init__(self, name: str, pulse: Callable[[], None] = nothing) -> None:
        self._name, self._pulse = name, pulse
        self._moved = self._pulsed = time.monotonic()
        self.frames = 0
        self.raised: BaseException | None = None

    def moved(self) -> None:
        """A frame came. Raises ClipError if it is one too many."""
        self._moved = time.monotonic()
        self.frames += 1
        if self.frames > MOST_FRAMES:
            raise ClipError(
                f"The clip '{self._name}' has more than {MOST_FRAMES:,} frames. Cut it to the "
                "motion."
            )

    def check(self) -> None:
        """Raise ClipError after too long a time without a frame, or what the pulse raises."""
        now = time.monotonic()
        try:
            if now - self._pulsed > _BETWEEN_PULSES:
                self._pulsed = now
                self._pulse()
            if now - self._moved > PATIENCE:
                raise ClipError(
                    f"The clip '{self._name}' gave no picture for {PATIENCE:g} seconds. Replace "
                    "it, or convert it to mp4."
                )
        except BaseException as error:
            self.raised = error
            raise


class WatchedFile:
    """The bytes of a clip, up to ``end`` if given, as FFmpeg reads them.

    It has no name: FFmpeg would take names such as `a:b.mp4` for an address, and look at endings
    where only the content counts.
    """

    def __init__(self, file: BinaryIO, watch: Watch, end: int | None = None) -> None:
        self._file, self._watch = file, watch
        self._size = file.seek(0, 2) if end is None else end
        self._place = 0

    def read(self, count: int) -> bytes:
        """The next bytes, at most `count`; empty at the end."""
        try:
            self._watch.check()
        except Exception:
            raise
        except BaseException as error:  # the library lets only Exceptions through
            raise OSError("stopped") from error
        self._file.seek(self._place)
        data = self._file.read(max(min(count, self._size - self._place), 0))
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; behind the end nothing is read."""
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place


def open_clip(clip: Readable) -> BinaryIO:
    """The bytes of a clip, from the beginning."""
    return io.BytesIO(clip.data) if isinstance(clip, VideoBytes) else clip.open("rb")


@contextlib.contextmanager
def reading(
    clip: Readable | str, name: str = "", after: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Turn whatever the decoders throw into an error that names the clip (or gives `name`).

    `clip` is a name alone where there is no file; `after` tells how far the reading came.
    """
    name = name or (clip if isinstance(clip, str) else clip.name)
    try:
        yield
    except LampError:
        raise
    except Exception as error:  # PyAV and PIL share no base class, and PIL leaks others' errors
        # FFmpeg's own has a number, and mostly means that a damaged file claims too much.
        if isinstance(error, MemoryError) and not hasattr(error, "errno"):
            raise
        log.debug("reading %s", name, exc_info=True)
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(clip, Path):
            if str(clip) in reason:  # PIL's words for it
                reason = "its content is not what its name says"
            if not clip.exists():
                reason = "there is no such file"
            elif clip.is_file() and not clip.stat().st_size:
                reason = "the file is empty"
        raise ClipError(
            f"The clip '{name}' cannot be read{after()}: {reason}. "
            "Replace it, convert it to mp4, or take it out of the folder."
        ) from error
