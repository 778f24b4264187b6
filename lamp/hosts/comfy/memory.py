"""Memory planning for a training in ComfyUI, with the memory that ComfyUI counts as free."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...clips.images import LATENT_STRIDE
from ...training.latents import LatentClips
from ...training.memory import plan
from ...training.memory.cards import CardSettings, settings_for
from ...training.memory.estimate import Estimator, MemoryPlan
from ...training.recipe import PRECISIONS, TrainConfig, choose_precision
from .training import ComfyHost


class ShadowHost(ComfyHost):
    """A host without its model: it runs another UNet, on `meta` (`lamp.training.memory`)."""

    def __init__(self, host: ComfyHost, unet: nn.Module) -> None:
        vars(self).update(vars(copy.copy(host)))
        self.unet = unet

    def _conditions(self, text: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As those of `ComfyHost`; the host's own code for SD-XL does not run on `meta`."""
        if self._text_width is None:
            return text, None
        vector = torch.empty(x.shape[0], self.unet.label_emb[0][0].in_features, device=x.device)
        return text[..., : self._text_width], vector.to(self.dtype)


@torch.inference_mode(False)  # nodes run in it, and the estimate needs gradients
def card_settings(
    model: Any, card: str, size: tuple[int, int, int], fixed: Mapping[str, Any]
) -> CardSettings:
    """`lamp.training.memory.cards.settings_for` for a MODEL, which is not loaded for it.

    Args:
        size: frames, width and height to use if there is enough memory.
        fixed: settings of `TrainConfig` that were set by hand.
    """
    import comfy.model_management as management

    host, auto = ComfyHost(model), card == "auto"
    # Settings for a card may be asked for on a machine without one.
    has_bf16 = host.has_bf16 or (not auto and host.device.type == "cpu")
    precision = choose_precision("auto", host.dtype, has_bf16)
    dtype = PRECISIONS[precision] or torch.float32
    on_cpu = auto and host.device.type == "cpu"
    frames, width, height = size
    memory = MemoryPlan(
        frames=frames,
        height=height // LATENT_STRIDE,
        width=width // LATENT_STRIDE,
        precision=precision,
        device="cpu" if on_cpu else "cuda",
        fused=not auto or plan.attention_is_fused(host.device, dtype),
    )
    loaded = [p.nbytes for p in host.unet.parameters() if p.device.type == host.device.type]
    free = int(management.get_free_memory(host.device)) + sum(loaded)
    estimator = Estimator(host.unet, lambda unet: ShadowHost(host, unet))
    return settings_for(card, estimator, memory, free, fixed)


def plan_memory(
    host: ComfyHost,
    latents: LatentClips,
    config: TrainConfig,
    checkpointing: str,
    say: Callable[[str], None],
) -> TrainConfig:
    """`lamp.training.memory.plan.plan_memory` for a host whose UNet is loaded."""
    import comfy.model_management as management

    free = int(management.get_free_memory(host.device))
    return plan.plan_memory(
        host.unet, latents, config, checkpointing, host.device, free, say,
        lambda unet: ShadowHost(host, unet),
    )  # fmt: skip
