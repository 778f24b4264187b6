"""Anchored windows: a long video in windows of the trained length that all begin with frame 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LampError


@dataclass(frozen=True)
class Windows:
    """How a long video is cut for each call of the UNet.

    Every window begins with frame 1 of the video, the clean one, as every clip does in training;
    after it come `length - 1` frames in a row, `overlap` of which it weights with the next window.

    Raises:
        LampError: fewer than 2 frames, or an overlap that leaves a window no frames of its own.
    """

    length: int = 16
    overlap: int = 4

    def __post_init__(self) -> None:
        if self.length < 2:
            raise LampError(f"A window of {self.length} frames is too short: use 16, for example.")
        if not 0 <= self.overlap < self.length - 1:
            raise LampError(
                f"Windows of {self.length} frames cannot overlap by {self.overlap}: use at most "
                f"{self.length - 2}, because frame 1 is in every window."
            )

    def frame_indices(self, frames: int) -> list[list[int]]:
        """Frame indices (from 0) of each window; all have one length, the last ends the video."""
        size = min(self.length, frames) - 1
        starts = [*range(1, frames - size, self.length - 1 - self.overlap), frames - size]
        return [[0, *range(start, start + size)] for start in starts]

    def weights(self, frames: int) -> list[Tensor]:
        """Blending weights of the frames of each window: linear in the overlaps, with sum 1."""
        windows, whole = self.frame_indices(frames), torch.zeros(frames)
        ramp = torch.arange(1, len(windows[0]))
        ramp = torch.minimum(ramp, ramp.flip(0)).clamp(max=self.overlap + 1)
        window_weights = torch.cat([torch.ones(1), ramp])
        for window in windows:
            whole[window] += window_weights
        return [window_weights / whole[window] for window in windows]


def predict_in_windows(
    predict: Callable[[Tensor], Tensor], x: Tensor, windows: Windows | None, frames: int
) -> Tensor:
    """Predict a batch of videos window by window and blend the overlaps.

    Memory use does not grow with the number of frames. Without windows, or if one window holds all
    frames, this is a single call.

    Args:
        predict: (rows `(b w)` of a window in the batch) -> prediction for these rows.
        x: `(b f) c h w`, the batch; the prediction has the same shape.
    """
    if windows is None or windows.length >= frames:
        return predict(torch.arange(len(x), device=x.device))
    total = torch.zeros_like(x)
    videos = len(x) // frames
    first_rows = torch.arange(videos, device=x.device)[:, None] * frames
    for window, share in zip(windows.frame_indices(frames), windows.weights(frames), strict=True):
        rows = (first_rows + torch.tensor(window, device=x.device)).flatten()
        part = predict(rows) * share.to(x).repeat(videos)[:, None, None, None]
        total.index_add_(0, rows, part.to(total))
    return total
