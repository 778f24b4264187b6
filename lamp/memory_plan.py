"""A run's memory settled before its first step: checkpointing chosen, what cannot fit refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from .architecture import map_unet
from .latents import LatentClips
from .memory import Estimator, MemoryPlan, choose_checkpointing
from .memory_fit import refuse
from .recipe import TrainConfig


def settle_memory(
    unet: nn.Module,
    latents: LatentClips,
    config: TrainConfig,
    checkpointing: str,
    device: torch.device,
    free: int,
    say: Callable[[str], None],
) -> TrainConfig:
    """`config` with checkpointing `on`, `off` or, for `auto`, as the memory asks for it.

    Args:
        unet: loaded already, in the type that it will have.
        free: bytes that are left on the device beside it.
        say: told the estimate.

    Raises:
        OutOfMemoryPlanError: the run cannot fit; names three settings with which it does.
    """
    sites = map_unet(unet)
    largest = max(latents.posteriors, key=lambda posterior: posterior.mean[0].numel())
    height, width = largest.mean.shape[-2:]
    plan = MemoryPlan.of(
        replace(config, checkpointing=checkpointing == "on"),
        height,
        width,
        text_tokens=max(text.shape[1] for text in latents.text.values()),
        device="cpu" if device.type == "cpu" else "cuda",
        pixels=latents.clips.size(0)[1] // latents.posteriors[0].mean.shape[-2],
    )
    estimator = Estimator(unet, sites)
    # The estimate counts the frozen UNet, too.
    available = free + sum(p.nbytes for p in unet.parameters())
    if checkpointing == "auto":
        plan = replace(plan, checkpointing=choose_checkpointing(estimator, plan, available))
    refuse(estimator, plan, available)
    say(estimator(plan).sentence())
    return replace(config, checkpointing=plan.checkpointing)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be told."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)
