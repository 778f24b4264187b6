"""Clips ready for training: their frames, decoded as they are asked for, and their windows."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from ..errors import ClipError
from .decoding.reader import SourceFrame
from .movement import Movement
from .settings import ClipSettings
from .sources import ClipSource
from .video import ClipInfo, fitted, resample

UNTIMED = 8.0
"""Frames a second at which what has no clock is played; the published videos have it."""


def same_rate(rates: Sequence[float]) -> bool:
    """Whether clips of these rates move alike: 29.97 is as good as 30."""
    return max(rates) <= 1.02 * min(rates)


@dataclass(frozen=True)
class Window:
    """One piece of a clip to learn from: the clip's number, its first frame, mirrored or not."""

    clip: int
    start: int
    flipped: bool = False


@dataclass(frozen=True)
class Clip:
    """One clip: where its frames come from and which of them are used.

    ``once`` is the number of frames at the asked rate and up to the cap, ``length`` that which the
    clip is given: with more than ``once`` it starts over. ``size`` is (width, height).
    """

    source: ClipSource
    info: ClipInfo
    size: tuple[int, int]
    once: int
    length: int
    movement: Movement


@dataclass
class ClipSet:
    """Clips ready for training. It holds where frames come from, not the frames: these are decoded
    as they are asked for.

    The stride is applied by the windows, so that every possible start counts. ``warnings`` are
    sentences for the user.
    """

    sources: list[Clip]
    settings: ClipSettings
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def infos(self) -> list[ClipInfo]:
        """What is known of each clip."""
        return [clip.info for clip in self.sources]

    @property
    def captions(self) -> list[str]:
        """One caption for each clip."""
        return [info.caption for info in self.infos]

    @property
    def rates(self) -> list[float]:
        """Frames a second of the clips that have a clock: the asked rate, or their own."""
        return [self.settings.fps or info.fps for info in self.infos if info.fps]

    @property
    def window_rate(self) -> float | None:
        """Frames a second at which windows move as their clips do: that of all clips with a clock,
        divided by the stride; None where none has one, or they differ."""
        rates = self.rates
        if not rates or not same_rate(rates):
            return None
        return float(rates[0] / self.settings.stride)

    @property
    def sample_rate(self) -> float:
        """Frames a second at which to play what is drawn from the first clip: its own, or 8 where
        it has no clock; divided by the stride."""
        own = self.infos[0].fps and (self.settings.fps or self.infos[0].fps)
        return float((own or UNTIMED) / self.settings.stride)

    def length(self, clip: int) -> int:
        """Frames of a clip, at the asked rate, up to the cap, started over if it was too short."""
        return self.sources[clip].length

    def size(self, clip: int) -> tuple[int, int]:
        """Width and height of a clip's frames, in pixels."""
        return self.sources[clip].size

    def chunks(self, clip: int, count: int = 16, mirrored: bool = False) -> Iterator[Tensor]:
        """All frames of a clip in order, at most ``count`` at a time: ``f h w 3`` uint8.

        Raises ClipError if the clip can no longer be read as it was.
        """
        pictures: list[Tensor] = []
        for picture in self._pictures(clip, range(self.length(clip))):
            pictures.append(picture.flip(1) if mirrored else picture)
            if len(pictures) == count:
                yield torch.stack(pictures)
                pictures = []
        if pictures:
            yield torch.stack(pictures)

    def key(self, clip: int) -> str:
        """Hex sha256 that names what ``chunks`` yields (not mirrored): the content of the clip and
        the settings that shape its frames. The content is read once, but not decoded."""
        chosen = self.sources[clip]
        shape = {
            "format": 2,  # to be raised when the same content gives other frames
            "content": chosen.source.digest,
            "size": chosen.size,
            "fit": self.settings.fit,
            "fps": self.settings.fps if chosen.info.fps else None,
            "once": chosen.once,
            "length": chosen.length,
        }
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()

    def starts(self, clip: int) -> int:
        """Number of windows in a clip: one for each frame that a window can start at."""
        return max(self.length(clip) - self.settings.span + 1, 0)

    def windows(self) -> list[Window]:
        """Every possible window, not mirrored, in order."""
        return [
            Window(clip, start) for clip in range(len(self)) for start in range(self.starts(clip))
        ]

    def sample_window(self, generator: torch.Generator, clip: int | None = None) -> Window:
        """A random window: of any clip with equal chance (or of ``clip``), at any start.

        Always draws three numbers, so that the settings do not shift what comes after.
        """
        pick, start, mirror = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        clip = int(pick * len(self)) if clip is None else clip
        return Window(clip, int(start * self.starts(clip)), self.settings.flip and mirror < 0.5)

    def frame_numbers(self, window: Window) -> slice:
        """The window's frames in its clip, also of anything computed for each frame of it."""
        return slice(window.start, window.start + self.settings.span, self.settings.stride)

    def window_frames(self, window: Window) -> Tensor:
        """The window's pictures, decoded now: ``f h w 3`` uint8."""
        numbers = range(self.length(window.clip))[self.frame_numbers(window)]
        frames = self.frames(window.clip, numbers)
        return frames.flip(2) if window.flipped else frames

    def frames(self, clip: int, numbers: Sequence[int]) -> Tensor:
        """Some frames of a clip, by rising numbers from 0: ``f h w 3`` uint8.

        Decoding stops after the last one, and only these become pixels.
        """
        return torch.stack(list(self._pictures(clip, numbers)))

    def _pictures(self, clip: int, numbers: Sequence[int]) -> Iterator[Tensor]:
        chosen, wanted = self.sources[clip], iter(numbers)
        following = next(wanted, None)
        for number, frame in enumerate(_played(chosen, self.settings)):
            if number == following:
                yield _picture(frame, chosen, self.settings)
                following = next(wanted, None)
            if following is None:
                return

    def report(self) -> str:
        """What there is to learn from, clip by clip, and what to watch out for: plain text."""
        from .report import report

        return report(self)

    def contact_sheet(self) -> Tensor:
        """Some frames of every clip, a row for each: IMAGE ``1 h w 3`` in 0..1."""
        from .report import contact_sheet

        return contact_sheet(self)


def _played(clip: Clip, settings: ClipSettings) -> Iterator[SourceFrame]:
    """The clip's frames at the asked rate, as often as its length asks for."""
    left = clip.length
    while left:
        wanted, count = min(left, clip.once), 0
        with contextlib.closing(clip.source.frames()) as source:
            frames = resample(source, settings.fps) if settings.fps else source
            for frame in islice(frames, wanted):
                yield frame
                count += 1
        if count < wanted:
            raise ClipError(
                f"'{clip.info.name}' had {clip.once} frames when it was read, now it has {count}. "
                "Read the clips again."
            )
        left -= count


def _picture(frame: SourceFrame, clip: Clip, settings: ClipSettings) -> Tensor:
    return fitted(frame, clip.source.path or clip.source.name, *clip.size, settings.fit)
