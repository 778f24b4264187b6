"""Extending a video inside ComfyUI, piece by piece, by the LAMP sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LampError
from ...method.extend import extend
from .frames import conditioning_for_piece, model_for_piece
from .noise import describe_latent
from .run import Piece
from .sampler import sample_video

_SEEDS = 2**64 - 1  # the host itself adds one to a seed, which must not overflow


def extend_video(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    *,
    seed: int,
    frames: int = 16,
    times: int = 1,
    hold: float = 1.0,
    **sampling: Any,
) -> dict[str, Any]:
    """Go on from the last frame of a LATENT (`lamp.method.extend.extend`).

    What holds one thing for each frame (hints, prompts, masks, strengths, patches of other packs)
    counts the frames of the whole video, those that are there already included.

    Args:
        model: a MODEL with a motion.
        seed: of the first piece; each further piece takes the next number.
        frames: of each piece, its first frame included, which is the last one so far.
        sampling: `sample_video`'s settings.

    Returns:
        The whole LATENT, `times * (frames - 1)` frames longer, without masks.

    Raises:
        LampError: the latent ends in an empty frame, or as `sample_video` and `extend`.
    """
    video = latent["samples"]
    if video.ndim != 4 or not video[-1].any():
        raise LampError(
            "There is no last frame to go on from: connect the finished video (LAMP KSampler, or "
            f"VAE Encode of all frames); this latent is {describe_latent(video)}, its last frame "
            "empty."
        )

    total = len(video) + times * (frames - 1)

    def draw(start: Tensor, number: int) -> Tensor:
        begin = len(video) - 1 + number * (frames - 1)
        piece = Piece(tuple(range(begin, begin + frames)), total)
        made: dict[int, Any] = {}
        drawn = sample_video(
            model_for_piece(model, piece),
            conditioning_for_piece(positive, piece, made),
            conditioning_for_piece(negative, piece, made),
            {"samples": torch.cat([start, start.new_zeros(frames - 1, *start.shape[1:])])},
            seed=(seed + number) % _SEEDS,
            **sampling,
        )
        return drawn["samples"]

    return {"samples": extend(video, draw, times, hold)}
