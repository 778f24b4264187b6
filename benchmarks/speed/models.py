"""Models and inputs of the speed benchmarks: full size with random weights, or the toy base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lamp.clips.load import clips_from_images
from lamp.method import master_weights
from lamp.method.architecture import map_unet, text_width
from lamp.method.host import Host
from lamp.method.motion import Motion
from lamp.toy.base import UNET_CONFIG, build_text_encoder, build_vae, load_toy_base
from lamp.training.latents import LatentClips, cache_latents

if TYPE_CHECKING:
    from .literal import LiteralUNet

# The config of Stable Diffusion 1.5.
SD15_CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
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
    """A model size: the config of its UNet, and the pixels per latent."""

    config: dict[str, Any]
    stride: int


SIZES = {"full": Size(SD15_CONFIG, 8), "toy": Size(UNET_CONFIG, 2)}


@dataclass(frozen=True)
class Shape:
    """A batch of videos; height and width are those of the LATENTS."""

    frames: int
    height: int
    width: int
    videos: int = 1


@dataclass
class Subject:
    """A model in a host, its motion, and the literal baseline with the same weights.

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
    """A model with random weights, or the toy base; host `comfy` needs an importable ComfyUI."""
    from .literal import LiteralUNet, literal_weights

    config = SIZES[size].config
    patcher, ops, made = None, master_weights, None
    if host == "comfy":
        import comfy.ops

        from lamp.hosts.comfy.models import build_patcher
        from lamp.hosts.comfy.training import ComfyHost

        patcher, ops = build_patcher(config, _unet_state(size)), comfy.ops.manual_cast
        unet = patcher.model.diffusion_model.to(device, dtype)
        unet.dtype = dtype
        made = ComfyHost(patcher)
    else:
        from lamp.hosts.diffusers.unet import DiffusersHost

        unet = empty_unet(config)
        unet.load_state_dict(_unet_state(size), assign=True)
        made = DiffusersHost(unet.requires_grad_(False).eval().to(device, dtype))
    motion = Motion(map_unet(made.unet), ops, dtype=dtype, device=device)
    _fill(motion, seed=1)
    motion.requires_grad_(False).eval()
    literal = LiteralUNet(config, literal_weights(made.unet, motion))
    return Subject(made, motion, literal, patcher, config, dtype, device)


def encoders(size: str, dtype: torch.dtype, device: str) -> tuple[nn.Module, nn.Module]:
    """A frozen VAE and text encoder with random weights."""
    models = []
    for make, config in ((build_vae, SD15_VAE_CONFIG), (build_text_encoder, SD15_TEXT_CONFIG)):
        model: nn.Module = make(config if size == "full" else None)
        models.append(model.requires_grad_(False).eval().to(device, dtype))
    return models[0], models[1]


def inputs(subject: Subject, shape: Shape, videos: int) -> tuple[Tensor, Tensor]:
    """Random latents `(b f) c h w` and text embeddings `b n d`."""
    generator = torch.Generator().manual_seed(2)
    size = (videos * shape.frames, 4, shape.height, shape.width)
    x = torch.randn(size, generator=generator)
    width = text_width(subject.host.unet)
    text = torch.randn(videos, TEXT_TOKENS, width, generator=generator)
    return x.to(subject.device, subject.dtype), text.to(subject.device, subject.dtype)


def random_clips(size: str, shape: Shape) -> LatentClips:
    """`videos` training clips of noise."""
    made = SIZES[size]
    height, width = shape.height * made.stride, shape.width * made.stride
    images = [torch.rand(shape.frames, height, width, 3) for _ in range(shape.videos)]
    clips = clips_from_images(images, ["noise"] * shape.videos, shape.frames, width, height)

    def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
        latents = (len(frames), 4, shape.height, shape.width)
        return torch.randn(latents), torch.ones(latents)

    def embed(prompts: list[str]) -> dict[str, Tensor]:
        width = made.config["cross_attention_dim"]
        return {prompt: torch.randn(1, TEXT_TOKENS, width) for prompt in prompts}

    return cache_latents(clips, encode, embed)


def empty_unet(config: dict[str, Any], device: str = "meta") -> Any:
    """A frozen UNet; on `meta` without memory, and without initialisation, which takes a minute."""
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        return UNet2DConditionModel.from_config(config).requires_grad_(False).eval()


def _unet_state(size: str) -> dict[str, Tensor]:
    if size == "toy":
        return dict(load_toy_base().unet.state_dict())
    unet = empty_unet(SIZES[size].config)
    unet.to_empty(device="cpu")
    _fill(unet, seed=0)
    return dict(unet.state_dict())


def _fill(module: nn.Module, seed: int) -> None:
    """Random weights of a size that keeps activations in their usual range."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn.mul_(0.5 * fan_in**-0.5))
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.01)
