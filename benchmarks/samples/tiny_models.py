"""A Stable Diffusion 1.x in miniature with random weights, for both hosts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lamp.hosts.comfy.models import build_patcher
from lamp.hosts.diffusers.unet import DiffusersHost, build_host
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile

WIDTH = 32


def tiny_config(text_width: int = WIDTH) -> dict[str, Any]:
    """A diffusers config; the width of the text decides the family."""
    return {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [WIDTH, 2 * WIDTH],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": text_width,
        "attention_head_dim": 2,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "use_linear_projection": False,
    }


def shallow_config() -> dict[str, Any]:
    """One level in place of two: half the work, where a test is not about the UNet's levels."""
    return tiny_config() | {
        "block_out_channels": [WIDTH],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
    }


def tiny_state(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights by canonical name."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = UNet2DConditionModel.from_config(config).state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def tiny_patcher(text_width: int = WIDTH, seed: int = 0) -> Any:
    """A MODEL of ComfyUI."""
    config = tiny_config(text_width)
    return build_patcher(config, tiny_state(config, seed))


def shallow_patcher() -> Any:
    """A MODEL of `shallow_config`."""
    return build_patcher(shallow_config(), tiny_state(shallow_config()))


def reference(file: MotionFile, config: dict[str, Any]) -> tuple[DiffusersHost, Motion]:
    """The same model on diffusers, and the motion of the file for it."""
    host = build_host(config, tiny_state(config))
    motion = Motion(map_unet(host.unet))
    motion.load_state_dict(file.state)
    return host, motion


def random_motion(patcher: Any, seed: int = 1, size: float = 0.05) -> MotionFile:
    """A motion for a MODEL whose every parameter is perturbed; `size` 0 is a fresh one."""
    motion = Motion(map_unet(patcher.model.diffusion_model)).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: tensor + size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in motion.state_dict().items()
    }
    return MotionFile(state, MotionConfig(family=motion.sites.family), name="random.safetensors")


def text(seed: int, tokens: int = 7, width: int = WIDTH) -> Tensor:
    """A text embedding `1 n d`."""
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed))


def video_latent(frames: int = 6, height: int = 8, width: int = 8, seed: int = 3) -> Tensor:
    """A clean frame 1 and zeros after it, in ComfyUI's unscaled latents."""
    latent = torch.zeros(frames, 4, height, width)
    latent[0] = 4 * torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed))
    return latent
