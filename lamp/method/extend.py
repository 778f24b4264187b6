"""Extend a video from its last frame and keep the colours of its first frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import LampError
from .adain import adain
from .masks import MotionMask, restore_held


def extend(
    video: Tensor,
    draw: Callable[[Tensor, int], Tensor],
    times: int = 1,
    hold: float = 1.0,
    motion_masks: Sequence[MotionMask | None] = (),
    free: Tensor | None = None,
) -> Tensor:
    """Append pieces to a video. Each piece starts from the last frame, which is not repeated.

    AdaIN gives the frames of a piece the statistics of its first frame, so colours would drift from
    piece to piece. The start of each piece therefore takes those of the video's first frame, except
    where masks hold the picture.

    Args:
        video: `f c h w`, clean latents.
        draw: (first frame `1 c h w` of a piece, number of the piece from 0) -> piece `p c h w`.
        times: number of pieces.
        hold: 0 keeps the last frame's own statistics, 1 takes the first frame's.
        motion_masks: those of the motions, see `restore_held`.
        free: `f 1 h w`, for all frames: 1 where a frame may change, 0 where it is kept.

    Raises:
        LampError: `times` is below 1, or `hold` outside 0..1.
    """
    if times < 1:
        raise LampError(f"times is {times}: set it to 1 or more.")
    if not 0.0 <= hold <= 1.0:
        raise LampError(f"hold_colors must lie between 0 and 1, not {hold:g}.")
    for number in range(times):
        last = video[-1:]
        start = torch.lerp(last, adain(last, video[:1]), hold)
        start = restore_held(start, last, motion_masks, (len(video) - 1,))
        if free is not None:
            start = torch.lerp(last, start, free[len(video) - 1].to(last))
        video = torch.cat([video, draw(start, number)[1:].to(video)])
    return video
