"""Open a clip's bytes, limit and cancel decoding, and turn decoder errors into messages."""

from __future__ import annotations

import contextlib
import io
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from ...errors import ClipError, LampError
from ...plain import log

MAX_PIXELS = 2**26
"""Limit for a frame: twice 8K. A file of a few bytes can claim any size."""
MAX_FRAMES = 100_000
"""Limit for one clip: an hour of film. A few kilobytes can hold more empty frames than that."""
PATIENCE = 30.0
"""Seconds that a decoder may take for the next picture."""
_BETWEEN_PULSES = 0.2  # seconds


@dataclass(frozen=True)
class VideoBytes:
    """A video file in memory, from another node."""

    name: str
    data: bytes


Readable = Path | VideoBytes
"""A file, a folder of images, or a file in memory."""


@dataclass
class ClipFacts:
    """A clip's rate in its header (frames per second, None if absent), and notes for the user:
    sentences without a subject, for `'clip.mp4' ...`."""

    rate: float | None = None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


@dataclass(frozen=True)
class SourceFrame:
    """A decoded frame, converted to pixels only on demand."""

    time: float | None
    """Seconds from the clip's start; None where the source has no timestamps."""
    load: Callable[[], Tensor]
    """Returns the picture, upright and in square pixels: ``h w 3`` uint8, over black."""
    held: float | None = None
    """Its duration in seconds, where the file states it."""
    facts: ClipFacts = field(default_factory=ClipFacts)
    """Shared by all frames of the clip."""


def nothing() -> None:
    """A pulse that never cancels."""


class Watch:
    """Stops decoding that makes no progress, and lets a cancel through.

    ``pulse`` is called regularly and may raise. The exception is kept in ``raised``, because FFmpeg
    calls this code and would turn it into an error of its own.
    """

    def __init__(self, name: str, pulse: Callable[[], None] = nothing) -> None:
        self._name, self._pulse = name, pulse
        self._moved = self._pulsed = time.monotonic()
        self.frames = 0
        self.raised: BaseException | None = None

    def moved(self) -> None:
        """Count a frame. Raises ClipError if there are too many."""
        self._moved = time.monotonic()
        self.frames += 1
        if self.frames > MAX_FRAMES:
            raise ClipError(
                f"The clip '{self._name}' has more than {MAX_FRAMES:,} frames. Cut it to "
                "the part with the motion."
            )

    def resumed(self) -> None:
        """Restart the clock after others have worked on a frame."""
        self._moved = time.monotonic()

    def check(self) -> None:
        """Raise ClipError if no frame came for too long, or what the pulse raises."""
        now = time.monotonic()
        try:
            if now - self._pulsed > _BETWEEN_PULSES:
                self._pulsed = now
                self._pulse()
            if now - self._moved > PATIENCE:
                raise ClipError(
                    f"The clip '{self._name}' gave no picture for {PATIENCE:g} seconds. Replace "
                    "it or convert it to mp4."
                )
        except BaseException as error:
            self.raised = error
            raise


class WatchedFile:
    """A file object for FFmpeg, up to ``end`` if given.

    It hides the name: FFmpeg would take `a:b.mp4` for an address, and trust extensions more than
    content.
    """

    def __init__(self, file: BinaryIO, watch: Watch, end: int | None = None) -> None:
        self._file, self._watch = file, watch
        self._size = file.seek(0, 2) if end is None else end
        self._place = 0

    def read(self, count: int) -> bytes:
        """At most `count` bytes; empty at the end."""
        try:
            self._watch.check()
        except Exception:
            raise
        except BaseException as error:  # PyAV passes only Exceptions on
            raise OSError("stopped") from error
        self._file.seek(self._place)
        data = self._file.read(max(min(count, self._size - self._place), 0))
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position; behind the end nothing is read."""
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        """The position of the next byte."""
        return self._place


def open_clip(clip: Readable) -> BinaryIO:
    """A clip's bytes as a file object."""
    return io.BytesIO(clip.data) if isinstance(clip, VideoBytes) else clip.open("rb")


@contextlib.contextmanager
def reading(
    clip: Readable | str, name: str = "", after: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Turn any error of the decoders into a ClipError that names the clip (or `name`).

    `clip` is a name only, where there is no file; `after` says how far decoding came.
    """
    name = name or (clip if isinstance(clip, str) else clip.name)
    try:
        yield
    except LampError:
        raise
    except Exception as error:  # PyAV and Pillow share no base class, Pillow leaks others' errors
        # FFmpeg's has a number, and mostly means that a damaged file claims too much.
        if isinstance(error, MemoryError) and not hasattr(error, "errno"):
            raise
        log.debug("reading %s", name, exc_info=True)
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(clip, Path):
            if str(clip) in reason:  # Pillow's error for an unknown format
                reason = "its content does not match its name"
            reason = _missing_or_empty(clip) or reason
        raise ClipError(
            f"The clip '{name}' cannot be read{after()}: {reason}. "
            "Replace it, convert it to mp4, or remove it from the folder."
        ) from error


def _missing_or_empty(path: Path) -> str:
    """Whether a file is missing or empty, in words. It is asked once: it may be replaced now."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError:
        return ""
    return "the file is empty" if stat.S_ISREG(found.st_mode) and not found.st_size else ""
