"""How training clips are cut and resized: frames, rate, size and buckets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import LampError
from ..settings import check_settings, setting
from .images import LATENT_STRIDE, Fit, check_size

Short = Literal["error", "skip", "loop"]

BUCKET_STEP = 64
"""Bucket sides are multiples of it: one cell of the UNet's coarsest level covers 64 pixels."""
SMALL = 256
"""Below this side, bucket sides are multiples of 8 (a latent); there would be too few otherwise."""
WIDEST = 2.6
"""Largest aspect ratio of a bucket; the widest films have 2.39."""


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut: windows of ``frames`` frames of ``width`` x ``height`` pixels.

    - ``fps``: clips are resampled to this rate by nearest frames (None: unchanged);
    - ``stride``: a window takes every ``stride``-th frame;
    - ``flip``: windows are mirrored with probability 1/2;
    - ``short``: a clip with too few frames is an ``error``, left out (``skip``) or repeated from
      the start (``loop``);
    - ``fit``: how pictures of another shape are resized, see ``fit_images``;
    - ``max_frames``: longer clips are cut off;
    - ``bucket``: each clip gets the size closest to its own shape, with an area of at most
      ``width`` x ``height``, instead of exactly that size;
    - ``copies``: distorted copies of each clip (``lamp.clips.augment``), turned by at most ``turn``
      degrees to either side, scaled by at most 1 + ``zoom`` or its inverse, and moved by at most
      the share ``shift`` of width and height. Half of the windows are of copies.

    Raises LampError for a value that cannot be used.
    """

    frames: int = 16
    width: int = 512
    height: int = 320
    fps: float | None = None
    stride: int = 1
    flip: bool = False
    short: Short = "error"
    fit: Fit = "crop"
    max_frames: int = 480
    bucket: bool = False
    copies: int = setting(
        0,
        "Distorted copies of each clip, added to the training, so that the motion depends less on "
        "subject and position. 0: none (paper). 7 is a good start. Encoding takes longer, training "
        "steps do not.",
        0,
        64,
        advanced=True,
    )
    turn: float = setting(
        10.0,
        "Copies are rotated by up to this many degrees. Keep it low if the motion has a direction; "
        "60 is a good start for things that spin or are seen from above.",
        0.0,
        180.0,
        step=1.0,
        advanced=True,
    )
    zoom: float = setting(
        0.15,
        "Copies are scaled up or down by up to this share, and their movements with them. Choose 0 "
        "if the video should move as far as the clips.",
        0.0,
        1.0,
        step=0.01,
        advanced=True,
    )
    shift: float = setting(
        0.05,
        "Copies are moved by up to this share of each side.",
        0.0,
        0.5,
        step=0.01,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if self.frames < 2:
            raise LampError(
                f"A video needs at least 2 frames, not {self.frames}: frame 1 is given, the others "
                "are learned. The usual number is 16."
            )
        if self.stride < 1:
            raise LampError(f"The stride must be 1 or more, not {self.stride}.")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise LampError(f"The frame rate must lie between 0 and 1000, not {self.fps:g}.")
        check_settings(self)
        for name, value, choices in (("short", self.short, Short), ("fit", self.fit, Fit)):
            if value not in get_args(choices):
                listed = ", ".join(get_args(choices))
                raise LampError(f"Unknown choice '{value}' for {name}. Choose one of: {listed}.")

    @property
    def span(self) -> int:
        """Frames from a window's first to its last, inclusive."""
        return (self.frames - 1) * self.stride + 1

    @property
    def most(self) -> int:
        """The largest number of frames used from one clip."""
        return max(self.max_frames, self.span)

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """The size (width, height) to which a clip of this size is resized."""
        if not self.bucket:
            return self.width, self.height
        return nearest_bucket(width, height, buckets(self.width, self.height))


def buckets(width: int, height: int) -> list[tuple[int, int]]:
    """The sizes (width, height) for clips of all shapes, the given one first: for each length of
    one side the longest other side that keeps the area, and so the memory, within the given one."""
    step = BUCKET_STEP if min(width, height) >= SMALL else LATENT_STRIDE
    area = width * height
    sizes = [(width, height)]
    for side in range(step, int(math.sqrt(area * WIDEST)) + 1, step):
        other = area // side // step * step
        if other and max(side, other) <= WIDEST * min(side, other):
            sizes += [(side, other), (other, side)]
    return list(dict.fromkeys(sizes))


def nearest_bucket(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size to which a ``width`` x ``height`` picture loses least by cropping; the largest of
    equal ones."""

    def merit(size: tuple[int, int]) -> tuple[float, int]:
        return round(share_kept((width, height), size), 6), size[0] * size[1]

    return max(sizes, key=merit)


def share_kept(size: tuple[int, int], target: tuple[int, int]) -> float:
    """The share of a picture's area that is left after cropping to the target's shape."""
    ratio = (size[0] * target[1]) / (size[1] * target[0])
    return min(ratio, 1 / ratio)
