"""A set of training clips: frames, decoded on demand, and windows of them."""

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

DEFAULT_RATE = 8.0
"""Frames per second for clips without timestamps; the rate of the published videos."""


def same_rate(rates: Sequence[float]) -> bool:
    """Whether clips of these rates move at the same speed: 29.97 counts as 30."""
    return max(rates) <= 1.02 * min(rates)


@dataclass(frozen=True)
class Window:
    """One training sample: the clip's number, its first frame, mirrored or not."""

    clip: int
    start: int
    flipped: bool = False


@dataclass(frozen=True)
class Clip:
    """One clip: the source of its frames, and which of them are used.

    ``once`` is the number of frames at the chosen rate, up to the cap; with a ``length`` beyond it
    the clip is looped. ``size`` is (width, height).
    """

    source: ClipSource
    info: ClipInfo
    size: tuple[int, int]
    once: int
    length: int
    movement: Movement


@dataclass
class ClipSet:
    """Clips ready for training. Holds the sources; frames are decoded on demand.

    Windows apply the stride, so that every possible start counts. ``warnings`` are sentences for
    the user.
    """

    sources: list[Clip]
    settings: ClipSettings
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def infos(self) -> list[ClipInfo]:
        """Facts about each clip."""
        return [clip.info for clip in self.sources]

    @property
    def captions(self) -> list[str]:
        """One caption per clip."""
        return [info.caption for info in self.infos]

    @property
    def rates(self) -> list[float]:
        """Frames per second of the clips with timestamps: the chosen rate, or their own."""
        return [self.settings.fps or info.fps for info in self.infos if info.fps]

    @property
    def window_rate(self) -> float | None:
        """Frames per second of the windows: the common rate of the clips, divided by the stride.
        None where no clip has a rate, or they differ."""
        rates = self.rates
        if not rates or not same_rate(rates):
            return None
        return float(rates[0] / self.settings.stride)

    @property
    def sample_rate(self) -> float:
        """Frames per second for samples made from the first clip: its rate (8 if unknown), divided
        by the stride."""
        own = self.infos[0].fps and (self.settings.fps or self.infos[0].fps)
        return float((own or DEFAULT_RATE) / self.settings.stride)

    def length(self, clip: int) -> int:
        """Number of frames of a clip: at the chosen rate, up to the cap, looped if too short."""
        return self.sources[clip].length

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The different sizes of the clips."""
        return list(dict.fromkeys(source.size for source in self.sources))

    def size(self, clip: int) -> tuple[int, int]:
        """Width and height of a clip's frames, in pixels."""
        return self.sources[clip].size

    def chunks(self, clip: int, count: int = 16, mirrored: bool = False) -> Iterator[Tensor]:
        """All frames of a clip in order, at most ``count`` at a time: ``f h w 3`` uint8.

        Raises ClipError if the clip has changed or can no longer be read.
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
        """Hex sha256 of what ``chunks`` yields (not mirrored): the clip's content and the settings
        that shape its frames. The content is read once, but not decoded."""
        chosen = self.sources[clip]
        shape = {
            "format": 2,  # raise it when the same content gives different frames
            "content": chosen.source.digest,
            "size": chosen.size,
            "fit": self.settings.fit,
            "fps": self.settings.fps if chosen.info.fps else None,
            "once": chosen.once,
            "length": chosen.length,
        }
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()

    def starts(self, clip: int) -> int:
        """Number of windows in a clip, one for each possible first frame."""
        return max(self.length(clip) - self.settings.span + 1, 0)

    def windows(self) -> list[Window]:
        """Every possible window, not mirrored, in order."""
        return [
            Window(clip, start) for clip in range(len(self)) for start in range(self.starts(clip))
        ]

    def sample_window(self, generator: torch.Generator, clip: int | None = None) -> Window:
        """A random window, of a random clip (or of ``clip``).

        Always draws three numbers, so that the settings do not shift later draws.
        """
        pick, start, mirror = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        clip = int(pick * len(self)) if clip is None else clip
        return Window(clip, int(start * self.starts(clip)), self.settings.flip and mirror < 0.5)

    def frame_numbers(self, window: Window) -> slice:
        """The window's frames in its clip, also as a slice of anything computed per frame."""
        return slice(window.start, window.start + self.settings.span, self.settings.stride)

    def frames(self, clip: int, numbers: Sequence[int]) -> Tensor:
        """Frames of a clip by ascending number from 0: ``f h w 3`` uint8.

        Decoding stops after the last one, and only these are converted to pixels.
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


def _played(clip: Clip, settings: ClipSettings) -> Iterator[SourceFrame]:
    """The clip's frames at the chosen rate, looped to its length."""
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
                f"'{clip.info.name}' had {clip.once} frames when it was read and now has {count}. "
                "Read the clips again."
            )
        left -= count


def _picture(frame: SourceFrame, clip: Clip, settings: ClipSettings) -> Tensor:
    return fitted(frame, clip.source.path or clip.source.name, *clip.size, settings.fit)
