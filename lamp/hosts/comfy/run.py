"""One sampling run under way: what it shows the UNet, and whether the motion acts in every call.

Other nodes may cut a batch, reorder it, or compute the UNet's layers by themselves. A motion that
trusted the shape of a batch would then give a wrong video without a word, so the run keeps its own
number of frames and compares every call with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LampError
from ...method.layout import FrameLayout

KEY = "lamp_motion"
# In the options of a MODEL that samples a piece of a longer video: see `Piece`.
PIECE = "lamp_piece"
# The key under which packs for AnimateDiff publish which frames a call shows; others read it.
AD_PARAMS = "ad_params"


@dataclass(frozen=True)
class Piece:
    """Which frames of a longer video a batch shows.

    `frame_indices` are their numbers, from 0; `total` is the number of frames of the whole video.
    """

    frame_indices: tuple[int, ...]
    total: int

    def part(self, rows: list[int]) -> Piece:
        """The piece made of some rows of this one."""
        return Piece(tuple(self.frame_indices[row] for row in rows), self.total)

    def published(self) -> dict[str, Any]:
        """What AnimateDiff-Evolved writes for a window, in its words."""
        indices = list(self.frame_indices)
        return {"full_length": self.total, "context_length": len(indices), "sub_idxs": indices}


@dataclass(repr=False)
class Run:
    """A run of a sampler on one video.

    `given` is starting noise that must not be mixed, `latent` the host's latent image (`f c h w`,
    model scale), `first` its clean frame 1 (`1 c h w`; None shows the frames as they are), `guider`
    and `sampling` the host's own. `shown` is the input of the UNet (`f c h w`) in the prediction
    under way and `denoised` the last prediction.
    """

    frames: int
    piece: Piece | None = None
    given: Tensor | None = None
    latent: Tensor | None = None
    first: Tensor | None = None
    guider: Any = None
    sampling: Any = None
    shown: Tensor | None = None
    denoised: Tensor | None = None
    acting: bool = False
    acted: int = 0
    bypassed: int = 0
    layers_seen: int = 0
    unconditional_scale: float | None = None

    @property
    def whole(self) -> Piece:
        """The frames of the run, which may be a piece of a longer video itself."""
        return self.piece or Piece(tuple(range(self.frames)), self.frames)

    def layout(self, x: Tensor, options: dict[str, Any], window: list[int] | None) -> FrameLayout:
        """How the frames lie in the batch `x` of a call of the UNet, `(b f) c h w`.

        Args:
            options: the call's transformer options.
            window: the rows of the run that the call shows; None for all.

        Raises:
            LampError: the batch does not hold these frames in their order.
        """
        rows = list(range(self.frames)) if window is None else window
        videos = self.videos_in(len(x), len(rows))
        self._check_order(x, rows, options)
        piece = self.whole.part(rows)
        if window is None and self.piece is None:
            return FrameLayout(self.frames, videos)
        return FrameLayout(len(rows), videos, piece.frame_indices, piece.total)

    def videos_in(self, rows: int, frames: int) -> int:
        """How many videos of `frames` frames a batch of `rows` images holds."""
        if rows % frames:
            raise LampError(
                f"A call of the model shows {rows} images, which are no whole videos of {frames} "
                "frames: another node on this MODEL cuts the video or changes the batch (context "
                "windows, batch splitting, reference images). Remove it; for long videos use "
                "LAMP Anchored Windows."
            )
        return rows // frames

    def _check_order(self, x: Tensor, rows: list[int], options: dict[str, Any]) -> None:
        """See that row number i of each video in the batch shows the frame that the run expects.

        A batch of the usual size may hold altered frames (self-attention guidance blurs them), but
        no other frames. One of another size, such as a batch of tiles, must show the run's own.
        """
        if self.shown is None:
            return
        usual = len(x) == len(rows) * len(options.get("cond_or_uncond", [0]))
        frames = self.shown[rows]
        wrong = (~_shows(x, frames)).nonzero().flatten()
        for number in wrong.tolist():
            if usual and not _shows(x[number].expand(len(rows), -1, -1, -1), frames).any():
                continue
            raise LampError(
                f"Image {number + 1} of {len(x)} in a call of the model is not the frame of the "
                "video that belongs there: another node on this MODEL reorders or replaces the "
                "frames. Remove it."
            )

    @contextmanager
    def attending(self) -> Iterator[None]:
        """One call of the UNet in which the motion acts."""
        self.acting = True
        self.acted += 1
        try:
            yield
        finally:
            self.acting = False

    @contextmanager
    def watched(self, unet: nn.Module, ends: tuple[str, str], wrapper: Any) -> Iterator[None]:
        """See that the motion acts wherever the UNet's layers run in one prediction.

        Args:
            ends: names of the UNet's first and last convolution.
            wrapper: the function that another node put around the calls of the UNet, if any.

        Raises:
            LampError: they ran without the motion, or the UNet has not been called at all.
        """

        def count(_: nn.Module, args: Any) -> None:
            self.bypassed += not self.acting
            self.layers_seen += self.acting

        handles = [unet.get_submodule(end).register_forward_pre_hook(count) for end in ends]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        # A cache may leave out later calls altogether, but then the first one has been made.
        if self.bypassed or not self.acted:
            culprit = "" if wrapper is None else f" ({_origin(wrapper)})"
            raise LampError(
                f"Another node on this MODEL{culprit} computes the UNet by itself, so the motion "
                "does not act: remove that node. Caches of this kind are DeepCache and compiled "
                "engines such as TensorRT."
            )


def run_of(options: dict[str, Any]) -> Run | None:
    """The run under way, from its transformer options; None outside of one."""
    return options.get(KEY)


def _origin(function: Any) -> str:
    """Where a function of another node comes from, for a message."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{kind.__module__}.{kind.__qualname__}".rsplit("custom_nodes.", 1)[-1]


_PROBES = ((0.5, 0.5), (0.2, 0.3), (0.7, 0.1), (0.4, 0.8))  # positions in a picture, as shares


def _shows(x: Tensor, frames: Tensor) -> Tensor:
    """Which images of `x` show the frames that belong there, by four pixels: booleans.

    Args:
        x: `(b f) c+ h w`; channels beyond those of the frames are conditions. Of another size than
            the frames, they are parts of them, from any place.
        frames: `f c H W`.
    """
    count, channels = frames.shape[:2]
    height, width = x.shape[-2:]
    whole = x.shape[-2:] == frames.shape[-2:]
    frames = frames.to(x.device, torch.float32)
    bound = 4 * torch.finfo(x.dtype).eps * frames.abs().max() + 1e-4
    same = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for down, right in _PROBES:
        row, column = int(down * height), int(right * width)
        pixels = x[:, :channels, row, column].float().unflatten(0, (-1, count)).transpose(0, 1)
        found = frames[..., row, column, None] if whole else frames.flatten(2)
        distances = torch.cdist(pixels, found.transpose(1, 2), p=torch.inf)  # f b 1 or f b (H W)
        same &= (distances.amin(2) <= bound).t().flatten()
    return same
