"""The UNet of Stable Diffusion 1.x in plain PyTorch, with the layer names of diffusers.

So that the benchmark needs neither diffusers nor ComfyUI. `tests/benchmarks/test_gpu.py` compares
it with diffusers' own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TRANSFORMER_EPS = 1e-6


class PlainUNet(nn.Module):
    """See the module's docstring.

    Args:
        config: of diffusers' UNet2DConditionModel, with one number of heads and convolutions as
            projections of the transformers.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        widths: list[int] = config["block_out_channels"]
        layers: int = config["layers_per_block"]
        self._width, embedded = widths[0], 4 * widths[0]
        make = _Maker(config, embedded)
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.time_embedding = nn.Module()
        self.time_embedding.linear_1 = nn.Linear(widths[0], embedded)
        self.time_embedding.linear_2 = nn.Linear(embedded, embedded)
        self.down_blocks = nn.ModuleList()
        skips, width, last = [widths[0]], widths[0], len(widths) - 1
        for level, kind in enumerate(config["down_block_types"]):
            given = [width] + [widths[level]] * (layers - 1)
            block = make.block(kind, given, widths[level])
            width = widths[level]
            skips += [width] * layers
            if level < last:
                block.downsamplers = _sampler(width, 2)
                skips.append(width)
            self.down_blocks.append(block)
        self.mid_block = make.block("CrossAttn", [width, width], width, attentions=1)
        self.up_blocks = nn.ModuleList()
        for level, kind in enumerate(config["up_block_types"]):
            given = []
            for _ in range(layers + 1):
                given.append(width + skips.pop())
                width = widths[last - level]
            block = make.block(kind, given, width)
            if level < last:
                block.upsamplers = _sampler(width, 1)
            self.up_blocks.append(block)
        self.conv_norm_out = make.norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config["out_channels"], 3, padding=1)

    def forward(
        self, x: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor]:
        """x `n c h w`, timesteps `n`, text `n k d` -> the predicted noise, alone in a tuple."""
        text = encoder_hidden_states
        embedded = self._embed(timesteps).to(x.dtype)
        embedded = self.time_embedding.linear_2(F.silu(self.time_embedding.linear_1(embedded)))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            for resnet, attention in _layers(block):
                x = attention(resnet(x, embedded), text)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0].conv(x)
                skips.append(x)
        first, second = self.mid_block.resnets
        x = second(self.mid_block.attentions[0](first(x, embedded), text), embedded)
        for block in self.up_blocks:
            for resnet, attention in _layers(block):
                x = attention(resnet(torch.cat([x, skips.pop()], dim=1), embedded), text)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0].conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return (self.conv_out(F.silu(self.conv_norm_out(x))),)

    def _embed(self, timesteps: Tensor) -> Tensor:
        half = self._width // 2
        steps = torch.arange(half, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * steps / half)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class _Maker:
    def __init__(self, config: dict[str, Any], embedded: int) -> None:
        self._groups = config.get("norm_num_groups", 32)
        self._eps = config.get("norm_eps", 1e-5)
        self._heads: int = config["attention_head_dim"]  # in SD 1.x configs the NUMBER of heads
        self._text: int = config["cross_attention_dim"]
        self._embedded = embedded

    def norm(self, width: int, eps: float | None = None) -> nn.GroupNorm:
        return nn.GroupNorm(self._groups, width, eps=self._eps if eps is None else eps)

    def block(
        self, kind: str, given: list[int], width: int, attentions: int | None = None
    ) -> nn.Module:
        block = nn.Module()
        resnets = [_Resnet(self, each, width, self._embedded) for each in given]
        block.resnets = nn.ModuleList(resnets)
        if kind.startswith("CrossAttn"):
            count = len(given) if attentions is None else attentions
            block.attentions = nn.ModuleList(
                _Transformer(self, width, self._text, self._heads) for _ in range(count)
            )
        return block


class _Resnet(nn.Module):
    def __init__(self, make: _Maker, given: int, width: int, embedded: int) -> None:
        super().__init__()
        self.norm1 = make.norm(given)
        self.conv1 = nn.Conv2d(given, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedded, width)
        self.norm2 = make.norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(given, width, 1) if given != width else None

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(F.silu(embedded))[:, :, None, None]
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _Transformer(nn.Module):
    def __init__(self, make: _Maker, width: int, text: int, heads: int) -> None:
        super().__init__()
        self.norm = make.norm(width, _TRANSFORMER_EPS)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([_Block(width, text, heads)])
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        height = x.shape[2]
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = self.transformer_blocks[0](tokens, text)
        hidden = tokens.transpose(1, 2).unflatten(2, (height, -1)).contiguous()
        return self.proj_out(hidden) + x


class _Block(nn.Module):
    def __init__(self, width: int, text: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = _Attention(width, width, heads)
        self.attn2 = _Attention(width, text, heads)
        self.ff = nn.Module()
        gate = nn.Module()
        gate.proj = nn.Linear(width, 8 * width)
        self.ff.net = nn.ModuleList([gate, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), text)
        hidden, gate = self.ff.net[0].proj(self.norm3(x)).chunk(2, dim=-1)
        return x + self.ff.net[2](hidden * F.gelu(gate))


class _Attention(nn.Module):
    def __init__(self, width: int, text: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(text, width, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        text = x if text is None else text
        parts = (self.to_q(x), self.to_k(text), self.to_v(text))
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in parts)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](out.transpose(1, 2).flatten(2))


def _sampler(width: int, stride: int) -> nn.ModuleList:
    sampler = nn.Module()
    sampler.conv = nn.Conv2d(width, width, 3, stride, padding=1)
    return nn.ModuleList([sampler])


def _layers(block: nn.Module) -> list[tuple[Any, Any]]:
    attentions = getattr(block, "attentions", [_without_attention] * len(block.resnets))
    return list(zip(block.resnets, attentions, strict=True))


def _without_attention(x: Tensor, _: Tensor) -> Tensor:
    return x
