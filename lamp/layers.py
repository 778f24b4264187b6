"""The learned layers of LAMP, frames lying in the batch dimension: `(b f) c h w`.

Layers are built from an `ops` namespace (`torch.nn`, or a host's own layer classes that cast and
stream weights), so that one definition serves every host.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# CUDA's attention kernels put the batch on a grid axis of at most 65,535.
_MAX_ATTENTION_BATCH = 32768


def causal_conv1d(y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Temporal convolution in the manner of video prediction (paper fig. 3a).

    out[i] = w0 y[i-2] + w1 y[i-1] + w2 y[i] + bias, with zeros before frame 1.

    Args:
        y: `b f c h w`.
        weight: `c_out c 3`.
    """
    padded = F.pad(y.transpose(1, 2), (0, 0, 0, 0, 2, 0))
    return F.conv3d(padded, weight[..., None, None], bias).transpose(1, 2)


def _causal_conv_class(ops: Any) -> type[nn.Conv1d]:
    """`ops.Conv1d` computing `causal_conv1d`, with the casting of weights that `ops` brings."""

    class CausalConv1d(ops.Conv1d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return causal_conv1d(input, weight, bias)

    return CausalConv1d


class MotionConv(nn.Module):
    """The residual of a temporal-spatial motion layer (paper sec. 3.4, fig. 3b).

    out = y + conv1d(y) * sigmoid(conv_gate(y)); both branches read the output y of the image
    model's convolution. Zero-initialised: a fresh layer returns y.
    """

    def __init__(self, channels: int, ops: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.conv1d = _causal_conv_class(ops)(channels, channels, 3, **factory)
        self.conv_gate = ops.Conv2d(channels, 1, 3, padding=1, **factory)

    def forward(
        self,
        y: Tensor,
        frames: int,
        strength: float | Tensor = 1.0,
        onto: Tensor | None = None,
    ) -> Tensor:
        """y: `(b f) c h w` -> the same shape: the residual added to `onto`, without to y."""
        video = y.unflatten(0, (-1, frames))
        gate = torch.sigmoid(self.conv_gate(y)) * strength
        temporal = self.conv1d(video).flatten(0, 1)
        return torch.addcmul(y if onto is None else onto, temporal, gate)


class TemporalAttention(nn.Module):
    """Bidirectional self-attention over the frames at each position; no positional encoding."""

    def __init__(self, channels: int, heads: int, ops: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(channels, channels, bias=False, **factory)
        self.to_k = ops.Linear(channels, channels, bias=False, **factory)
        self.to_v = ops.Linear(channels, channels, bias=False, **factory)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, **factory)])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x: `(b f) n c` -> the same shape."""
        tokens = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (b n) f c
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = _attend(q, k, v).transpose(1, 2).flatten(2)
        out = self.to_out[0](out)
        return out.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.shape[0] <= _MAX_ATTENTION_BATCH:
        return F.scaled_dot_product_attention(q, k, v)
    parts = (t.split(_MAX_ATTENTION_BATCH) for t in (q, k, v))
    return torch.cat([F.scaled_dot_product_attention(*p) for p in zip(*parts, strict=True)])


def initialise(conv: MotionConv) -> None:
    """Zero everything: the gate starts at 0.5, the temporal branch at 0."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def initialise_attention(
    attention: TemporalAttention, norm: nn.LayerNorm, generator: torch.Generator
) -> None:
    """Zero the output projection (weight and bias, as the paper says; the official code leaves the
    bias random). q, k and v keep the usual linear initialisation: with zeros no gradient would
    ever reach them."""
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        bound = 1 / math.sqrt(layer.in_features)
        with torch.no_grad():
            drawn = torch.rand(layer.weight.shape, generator=generator) * 2 * bound - bound
            layer.weight.copy_(drawn)
    for parameter in attention.to_out.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
