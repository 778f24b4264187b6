"""The layout of frames in a batch: `(b f) ...`, b videos of f frames each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LampError


@dataclass
class FrameLayout:
    """The layout of the current forward pass. The caller of the UNet sets it; hooks read it."""

    frames: int
    videos: int = 1
    # For a window of a longer video: the indices of its frames, and the total number of frames.
    frame_indices: tuple[int, ...] | None = None
    total: int | None = None
    # A factor on the motion for each video: see `motion_guidance`. None is 1 for all.
    motion_scales: tuple[float, ...] | None = None
    # Whether the hooks act. They may stay on a UNet between the calls that they are for.
    active: bool = True

    def check(self, x: Tensor) -> None:
        """Raises LampError if the batch `x` does not consist of whole videos."""
        if x.shape[0] % (self.videos * self.frames):
            raise LampError(
                f"A batch of {x.shape[0]} is not {self.videos} videos of {self.frames} frames: "
                "another patch on this MODEL changes the batch. Remove that patch."
            )

    def split(self, x: Tensor) -> Tensor:
        """`(b f t) ...` -> `b f t ...`; t is 1 unless a patch tiles the tokens of each frame."""
        self.check(x)
        return x.unflatten(0, (self.videos, self.frames, -1))

    def apart(self, x: Tensor) -> Tensor:
        """Tokens `b (f n) c`, as in first-frame attention, as `(b f) n c`; others unchanged."""
        if self.frames == 1 or len(x) != self.videos:
            return x
        return x.unflatten(1, (self.frames, -1)).flatten(0, 1)

    @contextmanager
    def scaled_by(self, scales: Sequence[float]) -> Iterator[None]:
        """Multiply the strength of the motion by one factor for each video in the batch."""
        self.motion_scales = tuple(scales)
        try:
            yield
        finally:
            self.motion_scales = None

    @property
    def without_motion(self) -> bool:
        """Whether the motion has strength 0 in all videos."""
        return self.motion_scales is not None and not any(self.motion_scales)

    def motion_scale(self, x: Tensor) -> float | Tensor:
        """The factor for `(b f t) ...`, of a shape that broadcasts; 1.0 for all."""
        if self.motion_scales is None:
            return 1.0
        scales = torch.tensor(self.motion_scales, dtype=x.dtype, device=x.device)
        rows = scales.repeat_interleave(len(x) // self.videos)
        return rows.reshape(-1, *[1] * (x.ndim - 1))
