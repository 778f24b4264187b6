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
from torch.autograd.function import once_differentiable

# CUDA's attention kernels put the batch on a grid axis of at most 65,535.
_MAX_ATTENTION_BATCH = 32768


def causal_conv1d(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Temporal convolution in the manner of video prediction (paper fig. 3a).

    out[i] = w0 y[i-2] + w1 y[i-1] + w2 y[i] + bias, with zeros before frame 1.

    Args:
        y: `b f c h w`; nothing is copied if its channels lie last in memory, as the result's do.
        weight: `c_out c 3`, best with its taps outermost in memory.
    """
    b, f, _, h, w = y.shape
    rows = y.permute(0, 1, 3, 4, 2).reshape(b, f * h * w, -1)
    # One type for all: under autocast `y` comes from a convolution, so it has the low precision.
    cast = weight.to(y.dtype), bias.to(y.dtype)
    out: Tensor = _CausalProducts.apply(rows, *cast, h * w)
    return out.unflatten(1, (f, h, w)).permute(0, 1, 4, 2, 3)


class _CausalProducts(torch.autograd.Function):
    """The three taps as matrix products added in place: with frames outermost, a shift in time is
    a slice, so nothing is padded, transposed or unfolded, and only the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, frame: int) -> Tensor:
        """x: `b (f n) c` with n = `frame` positions."""
        taps = _taps(weight)
        ctx.save_for_backward(x, weight)
        ctx.frame = frame
        out = bias.expand(*x.shape[:2], -1).contiguous()
        for past, tap in enumerate(reversed(taps)):
            shift, left = past * frame, max(x.shape[1] - past * frame, 0)
            for video, result in zip(x, out, strict=True):
                result[shift:].addmm_(video[:left], tap.t())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        gradient, taps = gradient.contiguous(), _taps(weight)
        grad_x = torch.zeros_like(x) if for_x else None
        grad_taps = torch.zeros_like(taps) if for_weight else None
        for tap in range(3):
            shift = (2 - tap) * ctx.frame
            left = max(x.shape[1] - shift, 0)
            for i, (video, upstream) in enumerate(zip(x, gradient, strict=True)):
                if grad_x is not None:
                    grad_x[i, :left].addmm_(upstream[shift:], taps[tap])
                if grad_taps is not None:
                    grad_taps[tap].addmm_(upstream[shift:].t(), video[:left])
        return (
            grad_x,
            None if grad_taps is None else grad_taps.permute(1, 2, 0),
            gradient.sum((0, 1)) if for_bias else None,
            None,
        )


def _taps(weight: Tensor) -> Tensor:
    """`c_out c 3` -> `3 c_out c`, each tap a matrix."""
    return weight.permute(2, 0, 1).contiguous()


def _causal_conv_class(ops: Any) -> type[nn.Conv1d]:
    """`ops.Conv1d` computing `causal_conv1d`, with the casting of weights that `ops` brings."""

    class CausalConv1d(ops.Conv1d):
        def __init__(self, channels: int, **factory: Any) -> None:
            super().__init__(channels, channels, 3, **factory)
            # The shape stays, the order in memory does not: so `_taps` need not copy.
            self.weight.data = _taps(self.weight.data).permute(1, 2, 0)

        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return causal_conv1d(input, weight, bias)

    return CausalConv1d


def _gate_conv_class(ops: Any) -> type[nn.Conv2d]:
    """`ops.Conv2d`, 3x3 to one channel, as one product for all nine places and their sum: the
    convolution kernels are made for many output channels."""

    class GateConv(ops.Conv2d):
        def __init__(self, channels: int, **factory: Any) -> None:
            super().__init__(channels, 1, 3, padding=1, **factory)

        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            rows = input.permute(0, 2, 3, 1).flatten(1, 2)
            # `fold` adds up what each position gives to its neighbours, so the kernel is turned.
            maps = F.linear(rows, weight[0].flip(1, 2).flatten(1).t()).transpose(1, 2)
            gate = F.fold(maps, input.shape[-2:], 3, padding=1)
            return gate + bias.to(gate.dtype)

    return GateConv


class MotionConv(nn.Module):
    """The residual of a temporal-spatial motion layer (paper sec. 3.4, fig. 3b).

    out = y + conv1d(y) * sigmoid(conv_gate(y)); both branches read the output y of the image
    model's convolution. Zero-initialised: a fresh layer returns y.
    """

    def __init__(self, channels: int, ops: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.conv1d = _causal_conv_class(ops)(channels, **factory)
        self.conv_gate = _gate_conv_class(ops)(channels, **factory)

    def forward(
        self,
        y: Tensor,
        frames: int,
        strength: float | Tensor = 1.0,
        onto: Tensor | None = None,
    ) -> Tensor:
        """y: `(b f) c h w` -> the same shape: the residual added to `onto`, without to y."""
        rows = y.contiguous(memory_format=torch.channels_last)
        gate = torch.sigmoid(self.conv_gate(rows)) * strength
        temporal = self.conv1d(rows.unflatten(0, (-1, frames))).flatten(0, 1)
        # `onto` comes first: the result lies in memory as it does, as the image model has it.
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
