"""Going on from the last frame of a clip, with the first clip's colours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import LampError
from .adain import adain


def extend(
    video: Tensor, draw: Callable[[Tensor, int], Tensor], times: int = 1, hold: float = 1.0
) -> Tensor:
    """Append pieces to a video, each begun by the last frame so far, which is not doubled.

    A piece takes the statistics of its own first frame, so colours would wander from piece to
    piece. So each begins with the statistics (AdaIN) of the video's very first frame.

    Args:
        video: `f c h w`, clean latents.
        draw: from a piece's first frame `1 c h w` and its number (from 0) to the piece `p c h w`.
        times: how many pieces.
        hold: from the last frame's own statistics (0) to the first frame's (1).

    Raises:
        LampError: no piece, or `hold` outside 0..1.
    """
    if times < 1:
        raise LampError(f"times is {times}: a video is extended at least once.")
    if not 0.0 <= hold <= 1.0:
        raise LampError(f"hold_colors must lie between 0 and 1, not {hold:g}.")
    for number in range(times):
        last = video[-1:]
        start = torch.lerp(last, adain(last, video[:1]), hold)
        video = torch.cat([video, draw(start, number)[1:].to(video)])
    return video
