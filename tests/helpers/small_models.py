"""Small UNets with random weights, the same in both hosts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lamp.method.architecture import map_unet
from lamp.method.host import Host
from lamp.method.motion import Motion

TEXT_WIDTH = 24

CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 32,
}


def random_state(seed: int = 0, config: dict[str, Any] = CONFIG) -> dict[str, Tensor]:
    """Weights of the image model, by canonical name."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config(config).state_dict()


def build(host: str, state: dict[str, Tensor]) -> Host:
    if host == "diffusers":
        from lamp.hosts.diffusers.unet import build_host

        return build_host(CONFIG, state)
    from lamp.hosts.comfy.models import build_patcher
    from lamp.hosts.comfy.training import ComfyHost

    return ComfyHost(build_patcher(CONFIG, state))


def random_motion(unet: nn.Module, seed: int = 1) -> Motion:
    """A motion whose every parameter is random, and small enough to stay finite."""
    motion = Motion(map_unet(unet)).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in motion.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return motion


def hook_count(module: nn.Module) -> int:
    """Hooks and replaced methods on all parts of a module."""
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + ("forward" in vars(part))
        for part in module.modules()
    )
