"""Anchored windows: a long video in windows of the trained length that all begin with frame 1.

A loop has one window more, across the end of the video, with frame 1 in its middle. There frame 1
is as noisy as its neighbours, since in training only a window's first frame is clean. The two
frames beside it are the mean of what this window and the others predict. More weight or a wider
blend would close the loop further, but disturb the motion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import LampError


@dataclass(frozen=True)
class Windows:
    """How a long video is cut for each call of the UNet.

    Every window begins with frame 1 of the video, the clean one, as every clip does in training;
    after it come `length - 1` frames in a row, `overlap` of which it weights with the next window.
    With `loop`, the last frame leads to frame 1, and a short video has two windows.

    Raises:
        LampError: fewer than 2 frames, or fewer than 4 for a loop, or an overlap that leaves a
            window no frames of its own.
    """

    length: int = 16
    overlap: int = 4
    loop: bool = False

    def __post_init__(self) -> None:
        if self.length < 2:
            raise LampError(f"A window of {self.length} frames is too short: use 16, for example.")
        if not 0 <= self.overlap < self.length - 1:
            raise LampError(
                f"Windows of {self.length} frames cannot overlap by {self.overlap}: use at most "
                f"{self.length - 2}, because frame 1 is in every window."
            )
        if self.loop:
            _check_loop(self.length)

    def split(self, frames: int) -> bool:
        """Whether a video of this length is processed in windows."""
        return self.loop or frames > self.length

    def frame_indices(self, frames: int) -> list[list[int]]:
        """Frame indices (from 0) of each window; all have one length, the last ends the video.

        A loop's last window runs across the end, so it has 0 twice.

        Raises:
            LampError: fewer than 4 frames in a loop.
        """
        size = min(self.length, frames) - 1
        starts = [*range(1, frames - size, self.length - 1 - self.overlap), frames - size]
        windows = [[0, *range(start, start + size)] for start in starts]
        if self.loop:
            _check_loop(frames)
            windows.append([0, *((place - size // 2) % frames for place in range(size))])
        return windows

    def weights(self, frames: int) -> list[Tensor]:
        """Blending weights of the frames of each window: linear in the overlaps, with sum 1."""
        windows, whole = self.frame_indices(frames), torch.zeros(frames)
        if self.loop:
            weights = replace(self, loop=False).weights(frames)
            last = torch.zeros(len(windows[-1]))
            for window, each in zip(windows, [*weights, last], strict=True):
                beside = [place for place, frame in enumerate(window) if frame in (1, frames - 1)]
                each[beside] = 0.5 if each is last else each[beside] / 2
            return [*weights, last]
        ramp = torch.arange(1, len(windows[0]))
        ramp = torch.minimum(ramp, ramp.flip(0)).clamp(max=self.overlap + 1)
        window_weights = torch.cat([torch.ones(1), ramp])
        for window in windows:
            whole[window] += window_weights
        return [window_weights / whole[window] for window in windows]


def _check_loop(frames: int) -> None:
    if frames < 4:
        raise LampError(
            f"A loop needs videos and windows of at least 4 frames, not {frames}: frame 1, the "
            "last frame, frame 1 again, and frame 2."
        )


def returns(window: Sequence[int]) -> list[int]:
    """The places in a window of frame indices at which a loop comes back to frame 1."""
    return [place for place, frame in enumerate(window) if place and not frame]


def predict_in_windows(
    predict: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    windows: Windows | None,
    frames: int,
    noisy_first: Tensor | None = None,
) -> Tensor:
    """Predict a batch of videos window by window and blend the overlaps.

    Memory use does not grow with the number of frames. Without windows, or if one window holds all
    frames, this is a single call.

    Args:
        predict: (rows `(b w)` of a window in the batch, what they show `(b w) c h w`) ->
            prediction for these rows.
        x: `(b f) c h w`, the batch; the prediction has the same shape.
        noisy_first: `b c h w` or `1 c h w`, frame 1 at the noise level of the others, for loops.
    """
    if windows is None or not windows.split(frames):
        return predict(torch.arange(len(x), device=x.device), x)
    total = torch.zeros_like(x)
    videos = len(x) // frames
    first_rows = torch.arange(videos, device=x.device)[:, None] * frames
    for window, share in zip(windows.frame_indices(frames), windows.weights(frames), strict=True):
        rows = (first_rows + torch.tensor(window, device=x.device)).flatten()
        shown = x[rows]
        if noisy_first is not None:
            shown.unflatten(0, (videos, -1))[:, returns(window)] = noisy_first[:, None].to(x)
        part = predict(rows, shown) * share.to(x).repeat(videos)[:, None, None, None]
        total.index_add_(0, rows, part.to(total))
    return total
