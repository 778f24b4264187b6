"""The models of `benchmarks.speed`: full-size ones with random weights, or the toy base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamp.method.architecture import map_unet
from lamp.method.host import Host
from lamp.method.motion import Motion
from lamp.toy.base import UNET_CONFIG, build_text_encoder, build_vae, load_toy_base

from .literal import LiteralUNet, literal_weights
from .train_memory import SD15_CONFIG

SD15_VAE_CONFIG: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
}
SD15_TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
TEXT_TOKENS = 77
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Size:
    """A size of model: its UNet, and how many pixels a latent stands for."""

    config: dict[str, Any]
    stride: int


SIZES = {"full": Size(SD15_CONFIG, 8), "toy": Size(UNET_CONFIG, 2)}


@dataclass
class Subject:
    """One model in one host, its motion, and the literal baseline on the same weights.

    `patcher` is the MODEL in ComfyUI, None in diffusers.
    """

    host: Host
    motion: Motion
    literal: LiteralUNet
    patcher: Any
    config: dict[str, Any]
    dtype: torch.dtype
    device: str


def build(host: str, size: str, dtype: torch.dtype, device: str) -> Subject:
    """A model with random weights, or the toy's; ComfyUI must be importable for its host."""
    config = SIZES[size].config
    build_host = _in_comfy if host == "comfy" else _in_diffusers
    patcher, made, ops = build_host(config, _unet_state(size), dtype, device)
    motion = Motion(map_unet(made.unet), ops, dtype=dtype, device=device)
    _fill(motion, seed=1)
    motion.requires_grad_(False).eval()
    literal = LiteralUNet(config, literal_weights(made.unet, motion))
    return Subject(made, motion, literal, patcher, config, dtype, device)


def encoders(size: str, dtype: torch.dtype, device: str) -> tuple[nn.Module, nn.Module]:
    """The VAE and the text encoder, frozen; random weights."""
    models = []
    for make, config in ((build_vae, SD15_VAE_CONFIG), (build_text_encoder, SD15_TEXT_CONFIG)):
        model: nn.Module = make(config if size == "full" else None)
        models.append(model.requires_grad_(False).eval().to(device, dtype))
    return models[0], models[1]


def _unet_state(size: str) -> dict[str, Tensor]:
    if size == "toy":
        return dict(load_toy_base().unet.state_dict())
    unet = _empty_unet(SIZES[size].config)
    unet.to_empty(device="cpu")
    _fill(unet, seed=0)
    return dict(unet.state_dict())


def _empty_unet(config: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):  # its own initialisation takes a minute
        return UNet2DConditionModel.from_config(config).requires_grad_(False)


def _in_diffusers(
    config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype, device: str
) -> tuple[Any, Host, Any]:
    from lamp.hosts.diffusers.unet import DiffusersHost

    unet = _empty_unet(config)
    unet.load_state_dict(state, assign=True)
    return None, DiffusersHost(unet.requires_grad_(False).eval().to(device, dtype)), nn


def _in_comfy(
    config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype, device: str
) -> tuple[Any, Host, Any]:
    import comfy.ops

    from lamp.hosts.comfy.models import build_patcher
    from lamp.hosts.comfy.training import ComfyHost

    patcher = build_patcher(config, state)
    unet = patcher.model.diffusion_model.to(device, dtype)
    unet.dtype = dtype
    return patcher, ComfyHost(patcher), comfy.ops.manual_cast


def _fill(module: nn.Module, seed: int) -> None:
    """Weights of a size that keeps activations about as large as they come."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn.mul_(0.5 * fan_in**-0.5))
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.01)
