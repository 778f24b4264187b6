"""A set of training clips: frames, decoded on demand, and windows of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
from torch import Tensor

from ..errors import ClipError
from .augment import draw_warp, warped
from .decoding.reader import SourceFrame, reading
from .images import fit_images
from .movement import Movement
from .settings import ClipSettings
from .sources import ClipSource
from .video import ClipInfo, resample

DEFAULT_RATE = 8.0
"""Frames per second for clips without timestamps; the rate of the published videos."""


def same_rate(rates: Sequence[float]) -> bool:
    """Whether clips of these rates move at the same speed: 29.97 counts as 30."""
    return max(rates) <= 1.02 * min(rates)


@dataclass(frozen=True)
class Window:
    """One training sample: the clip's number, its first frame, mirrored or not, and which of the
    clip's distorted copies it is of (0: of the clip itself)."""

    clip: int
    start: int
    flipped: bool = False
    copy: int = 0


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

    def chunks(
        self, clip: int, count: int = 16, mirrored: bool = False, copy: int = 0
    ) -> Iterator[Tensor]:
        """All frames of a clip in order, at most ``count`` at a time: ``f h w 3`` uint8.

        ``copy``: of this distorted copy, which is mirrored or not by itself.

        Raises ClipError if the clip has changed or can no longer be read.
        """
        pictures: list[Tensor] = []
        for picture in self._pictures(clip, range(self.length(clip)), copy):
            pictures.append(picture.flip(1) if mirrored else picture)
            if len(pictures) == count:
                yield torch.stack(pictures)
                pictures = []
        if pictures:
            yield torch.stack(pictures)

    def key(self, clip: int, copy: int = 0) -> str:
        """Hex sha256 of what ``chunks`` yields (not mirrored): the clip's content and the settings
        that shape its frames. The content is read once, but not decoded."""
        chosen = self.sources[clip]
        shape = {
            "format": 3,  # raise it when the same content gives different frames
            "content": chosen.source.digest,
            "size": chosen.size,
            "fit": self.settings.fit,
            "fps": self.settings.fps if chosen.info.fps else None,
            "once": chosen.once,
            "length": chosen.length,
        }
        if copy:
            shape["warp"] = asdict(draw_warp(self.settings, clip, copy))
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
        place = pick * len(self)
        clip = int(place) if clip is None else clip
        drawn = 2 * (place % 1) - 1  # half of the windows are of copies
        copy = int(drawn * self.settings.copies) + 1 if self.settings.copies and drawn >= 0 else 0
        flipped = self.settings.flip and mirror < 0.5 and not copy
        return Window(clip, int(start * self.starts(clip)), flipped, copy)

    def frame_numbers(self, window: Window) -> slice:
        """The window's frames in its clip, also as a slice of anything computed per frame."""
        return slice(window.start, window.start + self.settings.span, self.settings.stride)

    def frames(self, clip: int, numbers: Sequence[int], copy: int = 0) -> Tensor:
        """Frames of a clip or its copy by ascending number from 0: ``f h w 3`` uint8.

        Decoding stops after the last one, and only these are converted to pixels.
        """
        return torch.stack(list(self._pictures(clip, numbers, copy)))

    def _pictures(self, clip: int, numbers: Sequence[int], copy: int) -> Iterator[Tensor]:
        chosen, wanted = self.sources[clip], iter(numbers)
        warp = draw_warp(self.settings, clip, copy) if copy else None
        following = next(wanted, None)
        for number, frame in enumerate(_played(chosen, self.settings)):
            if number == following:
                picture = _picture(frame, chosen, self.settings)
                yield warped(picture, warp) if warp else picture
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
    with reading(clip.source.path or clip.source.name):
        image = frame.load()
    return fit_images(image[None], *clip.size, settings.fit)[0]
