"""How frames lie in the batch: `(b f) ...`, b videos of f frames each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import LampError


@dataclass
class FrameLayout:
    """The batch of the forward pass under way; hooks read it, whoever runs the UNet sets it."""

    frames: int
    videos: int = 1
    # Of a window of a longer video: where its frames stand (from 0), and how many there are in all.
    frame_indices: tuple[int, ...] | None = None
    total: int | None = None

    def check(self, x: Tensor) -> None:
        """Raises LampError if the batch `x` does not hold whole videos."""
        if x.shape[0] % (self.videos * self.frames):
            raise LampError(
                f"A batch of {x.shape[0]} does not hold {self.videos} videos of {self.frames} "
                "frames: another patch on this MODEL changes the batch; take it off."
            )

    def split(self, x: Tensor) -> Tensor:
        """`(b f t) ...` -> `b f t ...`; t is 1 unless a patch tiles the tokens of each frame."""
        self.check(x)
        return x.unflatten(0, (self.videos, self.frames, -1))
