"""Where a motion acts, measured in ComfyUI by a few sampling steps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...method.adain import AdaINSchedule
from ...method.motion_map import record_activity
from .binding import bound_motion
from .compiled import uncompiled
from .sampler import OFFICIAL_SCHEDULER, sample_video


def motion_activity(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int = 4,
    cfg: float = 12.5,
) -> Tensor:
    """Sample a LATENT's video in few steps and record where the gated residuals change over time.

    One call of the UNet is not enough: at its noise level the object has not moved yet.

    Returns:
        Activity `h w` at the latent's size, on the CPU.

    Raises:
        LampError: the model has no motion, the latent is not a video, or the motion has no effect.
    """
    height, width = latent["samples"].shape[-2:]
    with record_activity(*(each.motion for each in bound_motion(model).all)) as activity:
        sample_video(
            uncompiled(model),
            positive,
            negative,
            latent,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler="ddim",
            scheduler=OFFICIAL_SCHEDULER,
            schedule=AdaINSchedule("paper"),
        )
    return activity.map(height, width)
