"""What a tuning run will need of the device's memory, beside what ComfyUI says is there."""

from __future__ import annotations

from collections.abc import Callable

from ...training.latents import LatentClips
from ...training.memory.plan import settle_memory
from ...training.recipe import TrainConfig
from .training import ComfyHost


def plan_memory(
    host: ComfyHost,
    latents: LatentClips,
    config: TrainConfig,
    gradient_checkpointing: str,
    say: Callable[[str], None],
) -> TrainConfig:
    """`settle_memory` with the memory that ComfyUI counts as free; the UNet is loaded already."""
    import comfy.model_management as management

    free = int(management.get_free_memory(host.device))
    return settle_memory(
        host.unet, latents, config, gradient_checkpointing, host.device, free, say, host.dtype
    )
