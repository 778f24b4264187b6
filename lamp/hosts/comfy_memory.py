"""What a tuning run will need of the device's memory, beside what ComfyUI says is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..architecture import map_unet
from ..latents import LatentClips
from ..memory import Estimator, MemoryPlan, choose_checkpointing
from ..memory_fit import refuse
from ..recipe import TrainConfig
from .comfy_training import ComfyHost


def plan_memory(
    host: ComfyHost,
    latents: LatentClips,
    config: TrainConfig,
    checkpointing: str,
    say: Callable[[str], None],
) -> TrainConfig:
    """Settle `checkpointing` (on, off or auto), tell the estimate, and refuse what cannot fit.

    Raises:
        OutOfMemoryPlanError: it cannot; names three settings that can.
    """
    import comfy.model_management as management

    sites = map_unet(host.unet)
    largest = max(latents.posteriors, key=lambda posterior: posterior.mean[0].numel())
    height, width = largest.mean.shape[-2:]
    plan = MemoryPlan.of(
        replace(config, checkpointing=checkpointing == "on"),
        height,
        width,
        text_tokens=max(text.shape[1] for text in latents.text.values()),
        device="cpu" if management.is_device_cpu(host.device) else "cuda",
        pixels=latents.clips.size(0)[1] // latents.posteriors[0].mean.shape[-2],
    )
    estimator = Estimator(host.unet, sites)
    # The frozen UNet is loaded already, and the estimate counts it, too.
    loaded = sum(p.numel() * p.element_size() for p in host.unet.parameters())
    available = int(management.get_free_memory(host.device)) + loaded
    if checkpointing == "auto":
        plan = replace(plan, checkpointing=choose_checkpointing(estimator, plan, available))
    refuse(estimator, plan, available)
    say(estimator(plan).sentence())
    return replace(config, checkpointing=plan.checkpointing)
