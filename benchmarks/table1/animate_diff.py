"""AnimateDiff-style motion modules (Guo et al. 2023), tuned on the same clips as LAMP.

A small transformer over time follows each spatial block of the UNet. At each position, the f frames
are a sequence z of c channels:

    z = W_in GroupNorm(x);  z += A_1(LN(z) + p);  z += A_2(LN(z) + p);  z += FF(LN(z));
    x += W_out z,

with self-attentions A, sinusoidal positions p of the frames, and W_out zero at first. The image
model is frozen, and each frame passes it on its own. All frames are noise and count in the loss.

The published modules learn from millions of videos, these ones only from the clips: the paper's
figures for AnimateDiff are not comparable, hence the star in the table. A first frame is not given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import SiteMap
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise
from lamp.toy.base import ToyBase

from .denoising import denoise

GROUPS, HEADS = 32, 2


def positions(frames: int, channels: int) -> Tensor:
    """Sinusoidal encoding `f c` (Vaswani et al. 2017): sines in even, cosines in odd channels."""
    rates = torch.exp(torch.arange(0, channels, 2) * (-torch.log(torch.tensor(1e4)) / channels))
    angles = torch.arange(frames)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class FrameAttention(nn.Module):
    """Self-attention over sequences `n f c`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.to_qkv(z).chunk(3, -1)
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MotionModule(nn.Module):
    """The temporal transformer after one spatial block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.proj_in = nn.Linear(channels, channels)
        self.attentions = nn.ModuleList([FrameAttention(channels) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(3)])
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """`(b f) c h w` -> the same shape."""
        z = self.norm(x).unflatten(0, (-1, frames)).permute(0, 3, 4, 1, 2)  # b h w f c
        shape = z.shape
        z = self.proj_in(z.flatten(0, 2))
        p = positions(frames, z.shape[-1]).to(z)
        for norm, attention in zip(self.norms, self.attentions, strict=False):
            z = z + attention(norm(z) + p)
        z = z + self.feed_forward(self.norms[2](z))
        out = self.proj_out(z).reshape(shape).permute(0, 3, 4, 1, 2)
        return x + out.flatten(0, 1)


def spatial_blocks(unet: nn.Module) -> dict[str, tuple[nn.Module, int]]:
    """Name -> module and channels of each pair of residual block and spatial transformer (its last
    part): of the encoder, the middle and the decoder."""
    found = {}
    parts = {
        **{f"down_{i}": block for i, block in enumerate(unet.down_blocks)},
        "mid": unet.mid_block,
        **{f"up_{i}": block for i, block in enumerate(unet.up_blocks)},
    }
    for name, block in parts.items():
        ends = block.attentions if getattr(block, "attentions", None) else block.resnets
        for number, end in enumerate(ends):
            width = block.resnets[number].conv2.out_channels
            found[f"{name}_{number}"] = (end, width)
    return found


class AnimateDiff(Motion):
    """The motion modules of one UNet, with the training interface of a LAMP motion."""

    def __init__(self, sites: SiteMap, unet: nn.Module) -> None:
        super().__init__(replace(sites, convs=(), blocks=()))
        blocks = spatial_blocks(unet)
        self.motion_modules = nn.ModuleDict({n: MotionModule(w) for n, (_, w) in blocks.items()})

    def initialise(self, seed: int = 0) -> Motion:
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.motion_modules.values():
            nn.init.zeros_(module.proj_out.weight)
        return self

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    @contextmanager
    def attached(self, unet: nn.Module, layout: FrameLayout, **_: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for name, (end, _width) in spatial_blocks(unet).items():
                hook = end.register_forward_hook(_follower(self.motion_modules[name], layout))
                stack.callback(hook.remove)
            yield


def _follower(module: nn.Module, layout: FrameLayout) -> Any:
    def follow(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if isinstance(out, tuple):  # of a spatial transformer
            return (module(out[0], layout.frames), *out[1:])
        return module(out, layout.frames)

    return follow


def videos_of(
    toy: ToyBase,
    tuned: AnimateDiff,
    prompts: list[str],
    frames: int,
    seed: int,
    steps: int,
    guidance: float,
) -> Tensor:
    """Latents `(b f) c h w` of one video per prompt, from independent noise."""
    many, size = len(prompts), toy.unet.config.sample_size
    return denoise(
        DiffusersHost(toy.unet),
        lambda layout: tuned.attached(toy.unet, layout),
        draw_noise(frames, toy.unet.config.in_channels, size, size, seed, videos=many),
        toy.encode_text(prompts),
        toy.encode_text([""]).expand(many, -1, -1),
        guidance,
        steps,
    )
