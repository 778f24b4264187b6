"""Extend a video in ComfyUI piece by piece with the LAMP sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LampError
from ...method.extend import extend
from .binding import bound_motion
from .frames import conditioning_for_piece, model_for_piece
from .latent import check_one_video
from .noise import describe_latent
from .run import Piece
from .sampler import sample_video

_SEEDS = 2**64 - 1  # ComfyUI adds one to a seed, which must not overflow


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
    """Continue a LATENT from its last frame (`lamp.method.extend.extend`).

    Inputs with one entry per frame (hints, prompts, masks, strengths, patches of other packs) refer
    to the frames of the whole video, including those that exist already. The latent's own mask has
    one for each of these, of which the last goes on.

    Args:
        model: a MODEL with a motion.
        seed: seed of the first piece; each further piece uses the next number.
        frames: length of a piece including its first frame, the last frame so far.
        sampling: settings of `sample_video`.

    Returns:
        The whole LATENT, `times * (frames - 1)` frames longer, with its mask.

    Raises:
        LampError: the latent ends with an empty frame; see also `sample_video` and `extend`.
    """
    video = latent["samples"]
    if video.ndim != 4 or not video[-1].any():
        raise LampError(
            "The video has no last frame to continue from: connect a finished video (LAMP "
            f"KSampler, or VAE Encode of all frames). This latent is {describe_latent(video)}, and "
            "its last frame is empty."
        )

    check_one_video(video, latent.get("batch_index"))
    total = len(video) + max(times, 0) * (frames - 1)
    free = _free(latent.get("noise_mask"), video, total)

    def draw(start: Tensor, number: int) -> Tensor:
        begin = len(video) - 1 + number * (frames - 1)
        piece = Piece(tuple(range(begin, begin + frames)), total)
        made: dict[int, Any] = {}
        given = {"samples": torch.cat([start, start.new_zeros(frames - 1, *start.shape[1:])])}
        if free is not None:
            given["noise_mask"] = free[list(piece.frame_indices)]
        drawn = sample_video(
            model_for_piece(model, piece),
            conditioning_for_piece(positive, piece, made),
            conditioning_for_piece(negative, piece, made),
            given,
            seed=(seed + number) % _SEEDS,
            **sampling,
        )
        return drawn["samples"]

    masks = bound_motion(model).motion_masks
    for mask in masks:
        if mask is not None:
            mask.check(total)
    kept = {"noise_mask": free} if free is not None else {}
    return {"samples": extend(video, draw, times, hold, masks, free), **kept}


def _free(mask: Tensor | None, video: Tensor, total: int) -> Tensor | None:
    """A LATENT's mask as `f 1 h w` for all frames to come, 1 where they may change: that of the
    video's last frame goes on."""
    import comfy.sampler_helpers

    if mask is None:
        return None
    free = comfy.sampler_helpers.prepare_mask(mask, video.shape, torch.device("cpu"))[:, :1]
    return torch.cat([free, free[-1:].expand(total - len(video), -1, -1, -1)])
