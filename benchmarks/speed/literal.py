"""The official layout, rewritten from the method, as the baseline of `benchmarks.speed`.

Videos are 5-D, `b c f h w`. Every convolution and transformer moves frames into the batch and
back, the temporal convolution does so with positions, and spatial self-attention computes keys and
values of all frames and then gathers those of frame 1. Attention uses PyTorch's fused kernel, which
favours this baseline on a CPU. The weights are shared with the model under test, not copied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from lamp.method.architecture import canonical_names
from lamp.method.motion import TRAINED, Motion

Weights = dict[str, Tensor]

_TRANSFORMER_EPS = 1e-6  # of the first norm of a spatial transformer


def literal_weights(unet: nn.Module, motion: Motion) -> Weights:
    """All weights of a host's UNet and a motion by canonical name, shared with them.

    The official model stores tuned queries instead of deltas, so those are new tensors.
    """
    names = canonical_names(unet)
    weights: Weights = {}
    for host_name, name in names.items():
        for kind, parameter in unet.get_submodule(host_name).named_parameters(recurse=False):
            weights[f"{name}.{kind}"] = parameter
    for name, parameter in motion.named_parameters():
        if name.endswith(".attn1.to_q.weight"):
            weights[name] = (weights[name] + parameter).detach()
        else:
            weights[name] = parameter
    return weights


def is_trained(name: str) -> bool:
    """Whether the official code tunes the weight with this canonical name."""
    return any(f".{part}." in name for part in TRAINED)


class LiteralUNet:
    """SD 1.x's UNet with the motion parts in the official places.

    Args:
        config: of diffusers' UNet2DConditionModel, with one number of heads and no linear
            projections.
        weights: from `literal_weights`.
    """

    def __init__(self, config: dict[str, Any], weights: Weights) -> None:
        self.weights = weights
        self._layers: int = config["layers_per_block"]
        self._down: list[str] = config["down_block_types"]
        self._up: list[str] = config["up_block_types"]
        self._heads: int = config["attention_head_dim"]
        self._groups: int = config.get("norm_num_groups", 32)
        self._eps: float = config.get("norm_eps", 1e-5)
        self._width: int = config["block_out_channels"][0]

    def __call__(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """x `b c f h w`, timesteps `b`, text `b n d` -> predicted noise `b c f h w`."""
        embedded = self._embed(timesteps).to(x.dtype)
        x = self._motion_conv("conv_in", x)
        skips = [x]
        for level, kind in enumerate(self._down):
            block = f"down_blocks.{level}"
            for layer in range(self._layers):
                x = self._layer(block, layer, kind, x, embedded, text)
                skips.append(x)
            if level + 1 < len(self._down):
                x = self._motion_conv(f"{block}.downsamplers.0.conv", x, stride=2)
                skips.append(x)
        x = self._resnet("mid_block.resnets.0", x, embedded)
        x = self._transformer("mid_block.attentions.0", x, text)
        x = self._resnet("mid_block.resnets.1", x, embedded)
        for level, kind in enumerate(self._up):
            block = f"up_blocks.{level}"
            for layer in range(self._layers + 1):
                x = torch.cat([x, skips.pop()], dim=1)
                x = self._layer(block, layer, kind, x, embedded, text)
            if level + 1 < len(self._up):
                x = F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
                x = self._motion_conv(f"{block}.upsamplers.0.conv", x)
        return self._motion_conv("conv_out", F.silu(self._pooled_norm("conv_norm_out", x)))

    def _parameters(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self._parameters(name))

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._parameters(name))

    def _pooled_norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, self._groups, *self._parameters(name), self._eps)

    def _embed(self, timesteps: Tensor) -> Tensor:
        half = self._width // 2
        steps = torch.arange(half, device=timesteps.device)
        angles = timesteps[:, None] * torch.exp(-math.log(10000) * steps / half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        waves = waves.to(self.weights["time_embedding.linear_1.weight"].dtype)
        hidden = F.silu(self._linear("time_embedding.linear_1", waves))
        return self._linear("time_embedding.linear_2", hidden)

    def _motion_conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        b, f = x.shape[0], x.shape[2]
        weight, bias = self._parameters(name)
        frames = rearrange(x, "b c f h w -> (b f) c h w")
        frames = F.conv2d(frames, weight, bias, stride, padding=weight.shape[-1] // 2)
        y = rearrange(frames, "(b f) c h w -> b c f h w", b=b)
        h, w = y.shape[-2:]
        lines = F.pad(rearrange(y, "b c f h w -> (b h w) c f"), (2, 0))
        lines = F.conv1d(lines, *self._parameters(f"{name}.conv1d"))
        temporal = rearrange(lines, "(b h w) c f -> b c f h w", h=h, w=w)
        frames = rearrange(y, "b c f h w -> (b f) c h w")
        gate = F.conv2d(frames, *self._parameters(f"{name}.conv_gate"), padding=1)
        gate = rearrange(gate, "(b f) c h w -> b c f h w", f=f)
        return y + temporal * torch.sigmoid(gate)

    def _layer(
        self, block: str, layer: int, kind: str, x: Tensor, embedded: Tensor, text: Tensor
    ) -> Tensor:
        x = self._resnet(f"{block}.resnets.{layer}", x, embedded)
        if kind.startswith("CrossAttn"):
            x = self._transformer(f"{block}.attentions.{layer}", x, text)
        return x

    def _resnet(self, name: str, x: Tensor, embedded: Tensor) -> Tensor:
        hidden = F.silu(self._pooled_norm(f"{name}.norm1", x))
        hidden = self._motion_conv(f"{name}.conv1", hidden)
        shift = self._linear(f"{name}.time_emb_proj", F.silu(embedded))
        hidden = hidden + shift[:, :, None, None, None]
        hidden = F.silu(self._pooled_norm(f"{name}.norm2", hidden))
        hidden = self._motion_conv(f"{name}.conv2", hidden)
        if f"{name}.conv_shortcut.weight" in self.weights:
            x = self._motion_conv(f"{name}.conv_shortcut", x)
        return x + hidden

    def _transformer(self, name: str, x: Tensor, text: Tensor) -> Tensor:
        b, f, h = x.shape[0], x.shape[2], x.shape[3]
        frames = rearrange(x, "b c f h w -> (b f) c h w")
        text = repeat(text, "b n d -> (b f) n d", f=f)
        given = frames
        norm = self._parameters(f"{name}.norm")
        frames = F.group_norm(frames, self._groups, *norm, _TRANSFORMER_EPS)
        frames = F.conv2d(frames, *self._parameters(f"{name}.proj_in"))
        tokens = rearrange(frames, "b c h w -> b (h w) c")
        tokens = self._block(f"{name}.transformer_blocks.0", tokens, text, f)
        frames = rearrange(tokens, "b (h w) c -> b c h w", h=h)
        frames = F.conv2d(frames.contiguous(), *self._parameters(f"{name}.proj_out")) + given
        return rearrange(frames, "(b f) c h w -> b c f h w", b=b)

    def _block(self, name: str, x: Tensor, text: Tensor, f: int) -> Tensor:
        normed = self._layer_norm(f"{name}.norm1", x)
        key = self._linear(f"{name}.attn1.to_k", normed)
        value = self._linear(f"{name}.attn1.to_v", normed)
        key, value = (_of_first_frame(projected, f) for projected in (key, value))
        x = x + self._attend(f"{name}.attn1", normed, key, value)
        normed = self._layer_norm(f"{name}.norm2", x)
        key = self._linear(f"{name}.attn2.to_k", text)
        value = self._linear(f"{name}.attn2.to_v", text)
        x = x + self._attend(f"{name}.attn2", normed, key, value)
        hidden = self._linear(f"{name}.ff.net.0.proj", self._layer_norm(f"{name}.norm3", x))
        hidden, gate = hidden.chunk(2, dim=-1)
        x = x + self._linear(f"{name}.ff.net.2", hidden * F.gelu(gate))
        n = x.shape[1]
        lines = rearrange(x, "(b f) n c -> (b n) f c", f=f)
        normed = self._layer_norm(f"{name}.norm_temp", lines)
        key = self._linear(f"{name}.attn_temp.to_k", normed)
        value = self._linear(f"{name}.attn_temp.to_v", normed)
        lines = lines + self._attend(f"{name}.attn_temp", normed, key, value)
        return rearrange(lines, "(b n) f c -> (b f) n c", n=n)

    def _attend(self, name: str, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self._linear(f"{name}.to_q", x)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self._heads) for t in (query, key, value))
        out = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        return self._linear(f"{name}.to_out.0", out)


def _of_first_frame(tokens: Tensor, f: int) -> Tensor:
    """Tokens `(b f) n c` with those of frame 1 gathered for every frame."""
    video = rearrange(tokens, "(b f) n c -> b f n c", f=f)
    return rearrange(video[:, [0] * f], "b f n c -> (b f) n c")
