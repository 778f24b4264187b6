"""Memory planning for a training in ComfyUI, with the memory that ComfyUI counts as free."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...training.latents import LatentClips
from ...training.memory import plan
from ...training.recipe import TrainConfig
from .training import ComfyHost


class ShadowHost(ComfyHost):
    """A host without its model: it runs another UNet, on `meta` (`lamp.training.memory`)."""

    def __init__(self, host: ComfyHost, unet: nn.Module, dtype: torch.dtype | None) -> None:
        vars(self).update(vars(copy.copy(host)))
        self.unet, self.dtype = unet, dtype or host.dtype

    def _conditions(self, text: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As those of `ComfyHost`; the host's own code for SD-XL does not run on `meta`."""
        if self._text_width is None:
            return text, None
        vector = torch.empty(x.shape[0], self.unet.label_emb[0][0].in_features, device=x.device)
        return text[..., : self._text_width], vector.to(self.dtype)


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
        lambda unet, dtype: ShadowHost(host, unet, dtype),
    )  # fmt: skip
