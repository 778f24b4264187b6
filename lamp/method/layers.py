"""The learned layers of LAMP. Frames are in the batch dimension: `(b f) c h w`.

Layers are built from an `ops` namespace (`lamp.method.master_weights`, or ComfyUI's layer classes
that cast and stream weights), so that one definition serves every host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import fused
from .attention import attend_frames

# Up to this ratio the feature map of one frame is a matrix wide enough for a fast product. Beyond
# it one product over all frames is faster, although the input has to be copied.
_CHANNELS_A_POSITION = 4
# PyTorch's fp32 products on a CPU are MKL's, which use no AVX-512 on CPUs of AMD. Its convolutions
# are oneDNN's, which do and are twice as fast.
_CPU: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
_SLOW_PRODUCTS = "AMD" in _CPU.get("cpu_name", "") and bool(_CPU.get("avx512_f"))


def causal_conv1d(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Causal convolution over time, as in video prediction (paper fig. 3a).

    out[i] = w0 y[i-2] + w1 y[i-1] + w2 y[i] + bias, with zeros before frame 1.

    Args:
        y: `b f c h w`; the result may have another memory layout.
        weight: `c_out c 3`, fastest in the memory layout of `_taps`. It and `bias` may have a
            higher precision than `y`.
    """
    b, _, c, h, w = y.shape
    # With gradients both take about the same time at the toy's 64 channels; wider ones may gain.
    exact = y.device.type == "cpu" and y.dtype == torch.float32
    convolve = _SLOW_PRODUCTS and exact and not torch.is_grad_enabled()
    out: Tensor
    if y.is_contiguous() and c <= _CHANNELS_A_POSITION * h * w:
        maps = _map_convolution if convolve else _MapProducts.apply
        out = maps(y.flatten(3), weight, bias)
        return out.unflatten(3, (h, w))
    given = y.permute(1, 0, 3, 4, 2).flatten(1, 3).contiguous()
    rows = _row_convolution if convolve else _row_products
    out = rows(given, weight.to(y.dtype), bias.to(y.dtype))
    return out.unflatten(1, (b, h, w)).permute(1, 0, 4, 2, 3)


def _map_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`b f c n` -> `b f c_out n`, as a 2-D convolution over frames and positions."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    padded = F.conv2d(x.transpose(1, 2), weight[..., None], bias, padding=(2, 0))
    return padded[:, :, :-2].transpose(1, 2)


def _row_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`f m c` -> `f m c_out`, as a convolution whose image is the weight, which is thus not copied,
    and whose kernels are the windows of three frames.

    A dilation changes nothing in kernels of one position, but without it PyTorch would compute a
    product.
    """
    padded = F.pad(x, (0, 0, 0, 0, 2, 0))
    windows = torch.cat([padded[tap : tap + len(x)] for tap in range(3)], 2).flatten(0, 1)
    image = _taps(weight).flatten(0, 1)[None, :, None]  # 1 (3 c) 1 c_out
    out = F.conv2d(image, windows[:, :, None, None], dilation=2)[0, :, 0]
    return out.add_(bias).unflatten(0, x.shape[:2])


class _MapProducts(torch.autograd.Function):
    """One product per frame: the channels of three consecutive frames are one matrix in memory, so
    nothing is padded or copied, and only the input is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """x: `b f c n`."""
        ctx.save_for_backward(x, weight)
        taps = _taps(weight.to(x.dtype)).flatten(0, 1).t()  # c_out (3 c)
        bias = bias.to(x.dtype)
        out = bias[:, None].expand(*x.shape[:2], -1, x.shape[3]).contiguous()
        for video, result in zip(x, out, strict=True):
            _add_windows(result, taps, video)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        gradient = gradient.contiguous()
        grad_x = torch.zeros_like(x) if for_x else None
        grad_weight = torch.zeros_like(weight) if for_weight else None
        turned = weight.to(x.dtype).flip(2).permute(1, 2, 0).flatten(1)  # c (3 c_out)
        for i, (video, upstream) in enumerate(zip(x, gradient, strict=True)):
            if grad_x is not None:
                _add_windows(grad_x[i], turned, upstream, ahead=True)
            if grad_weight is not None:
                grad_weight += _weight_gradient(video, upstream)
        grad_bias = gradient.sum((0, 1, 3), dtype=weight.dtype) if for_bias else None
        return grad_x, grad_weight, grad_bias


def _weight_gradient(x: Tensor, upstream: Tensor) -> Tensor:
    """`c_out c 3` from `f c n` and `f c_out n`. Each tap is one product over all frames, so that
    half precision rounds its sum once."""
    f, c, n = x.shape
    padded = x.new_zeros(c, f + 2, n)
    padded[:, 2:] = x.transpose(0, 1)
    rows, given = padded.flatten(1), upstream.transpose(0, 1).flatten(1)
    taps = x.new_empty(3, c, len(given))
    for tap in range(3):
        torch.mm(rows[:, tap * n : (tap + f) * n], given.t(), out=taps[tap])
    return taps.permute(2, 1, 0)


def _add_windows(out: Tensor, matrix: Tensor, x: Tensor, ahead: bool = False) -> None:
    """out[i] += matrix (x[i-2], x[i-1], x[i]), or `ahead` matrix (x[i], x[i+1], x[i+2]).

    Both are `f c n`; frames before the first and after the last count as zero.
    """
    f, c, n = x.shape
    for seen in range(1, min(f, 2) + 1):
        if ahead:
            out[-seen].addmm_(matrix[:, : seen * c], x[-seen:].flatten(0, 1))
        else:
            out[seen - 1].addmm_(matrix[:, -seen * c :], x[:seen].flatten(0, 1))
    if f > 2:
        windows = x.as_strided((f - 2, 3 * c, n), (c * n, n, 1))
        whole = out[:-2] if ahead else out[2:]
        whole.baddbmm_(matrix.expand(f - 2, -1, -1), windows)


def _row_products(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One product per tap for all videos, `f m c` -> `f m c_out`. With frames outermost, a shift in
    time is a slice, so nothing is padded, and only the input is kept for the backward pass."""
    taps = _taps(weight)
    out = torch.addmm(bias, x.flatten(0, 1), taps[2]).unflatten(0, x.shape[:2])
    for past in range(1, min(len(x), 3)):
        now, then = out[past:].flatten(0, 1), x[:-past].flatten(0, 1)
        now.addmm_(then, taps[2 - past])
    return out


def _taps(weight: Tensor) -> Tensor:
    """`c_out c 3` -> `3 c c_out`: each tap is a matrix, and so are all three together."""
    return weight.permute(2, 1, 0).contiguous()


def _causal_conv_class(ops: Any) -> type[nn.Conv1d]:
    """`ops.Conv1d` with `causal_conv1d` as its computation and the weight casting of `ops`."""

    class CausalConv1d(ops.Conv1d):
        def __init__(self, channels: int, **factory: Any) -> None:
            super().__init__(channels, channels, 3, **factory)
            # Same shape, other memory layout, so that `_taps` need not copy.
            self.weight.data = _taps(self.weight.data).permute(2, 1, 0)

        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return self.work(input, weight, bias)

        work = staticmethod(causal_conv1d)

    return CausalConv1d


def _gate_conv_class(ops: Any) -> type[nn.Conv2d]:
    """`ops.Conv2d`, 3x3 to one channel, computed as one matrix product and a sum over the nine
    taps: convolution kernels are tuned for many output channels."""

    class GateConv(ops.Conv2d):
        def __init__(self, channels: int, **factory: Any) -> None:
            super().__init__(channels, 1, 3, padding=1, **factory)

        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return self.work(input, weight, bias)

        work = staticmethod(_gate_map)

    return GateConv


def _gate_map(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # `fold` adds what each position contributes to its neighbours, so flip the kernel.
    turned = weight[0].to(y.dtype).flip(1, 2).flatten(1).t()
    maps = torch.bmm(turned.expand(len(y), -1, -1), y.flatten(2))
    gate = F.fold(maps, y.shape[-2:], 3, padding=1)
    return gate + bias.to(gate.dtype)


def _run(layer: nn.Module, work: Callable[..., Any], x: Tensor) -> Any:
    """Call a layer with another computation. A host's layer provides its weights, cast and moved
    to the device, only while it runs."""
    layer.work = work
    try:
        return layer(x)
    finally:
        del layer.work


class MotionConv(nn.Module):
    """The temporal-spatial motion layer (paper sec. 3.4, fig. 3b).

    out = y + conv1d(y) * sigmoid(conv_gate(y)), where y is the output of the image model's
    convolution. Zero-initialised: a new layer returns y.
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
        """Add the residual for y, `(b f) c h w`, to `onto` (by default to y itself)."""
        if _is_fusable(y, onto):
            out = fused.attempt(self._fused, y, frames, strength, onto)
            if out is not None:
                return out
        gate = torch.sigmoid(self.conv_gate(y))
        if isinstance(strength, Tensor) or strength != 1.0:
            gate = gate * strength
        temporal = self.conv1d(y.unflatten(0, (-1, frames)))
        onto = (y if onto is None else onto).unflatten(0, (-1, frames))
        return add_residual(onto, temporal, gate.unflatten(0, (-1, frames))).flatten(0, 1)

    def _fused(
        self, y: Tensor, frames: int, strength: float | Tensor, onto: Tensor | None
    ) -> Tensor:
        """Two kernels: the gate, and everything else."""
        gate, motion_conv = fused.operation("gate"), fused.operation("motion_conv")
        factor = strength if isinstance(strength, Tensor) else None
        scale = 1.0 if isinstance(strength, Tensor) else strength

        def maps_of(_: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return gate(y.flatten(2), weight.to(y.dtype).contiguous(), bias.to(y.dtype))

        maps = _run(self.conv_gate, maps_of, y)

        def add(_: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            taps = _taps(weight.to(y.dtype)).flatten(0, 1)
            base = y if onto is None else onto
            return motion_conv(y, taps, bias.to(y.dtype), maps, factor, base, frames, scale)

        out: Tensor = _run(self.conv1d, add, y)
        return out


def _is_fusable(y: Tensor, onto: Tensor | None) -> bool:
    """Whether the fused kernels suit the memory of a motion layer's inputs. GPUs copy at least two
    half-precision values at once, so frames of an odd size would be slow."""
    alike = y.is_contiguous() and (onto is None or onto.is_contiguous())
    return alike and y.shape[2] * y.shape[3] % 2 == 0 and fused.multiplies_fast(y)


def add_residual(x: Tensor, residual: Tensor, factor: float | Tensor) -> Tensor:
    """x + factor * residual, in the memory layout of `x`.

    Without gradients the result may overwrite `residual`, which saves memory.
    """
    alike = residual.stride() == x.stride() and residual.dtype == x.dtype
    out = residual if alike and not torch.is_grad_enabled() else None
    if isinstance(factor, Tensor):
        return torch.addcmul(x, residual, factor, out=out)
    return torch.add(x, residual, alpha=factor, out=out)


class TemporalAttention(nn.Module):
    """Bidirectional self-attention over frames at each position, without positional encoding."""

    def __init__(self, channels: int, heads: int, ops: Any = nn, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = ops.Linear(channels, channels, bias=False, **factory)
        self.to_k = ops.Linear(channels, channels, bias=False, **factory)
        self.to_v = ops.Linear(channels, channels, bias=False, **factory)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, **factory)])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x: `(b f) n c` -> the same shape."""
        projected = [layer(x) for layer in (self.to_q, self.to_k, self.to_v)]
        mixed = None
        if frames <= fused.MAX_FRAMES and all(part.is_contiguous() for part in projected):
            mixed = fused.attempt("frame_attention", *projected, frames, self.heads)
        if mixed is None:
            # One sequence per position and head. `b (n heads) f d` is a view of the projections,
            # so nothing is copied.
            q, k, v = (
                part.unflatten(0, (-1, frames)).unflatten(-1, (self.heads, -1)).flatten(2, 3)
                for part in projected
            )
            out = attend_frames(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
            mixed = out.transpose(1, 2).reshape(x.shape)
        return self.to_out[0](mixed)


def initialise(conv: MotionConv) -> None:
    """Zero all parameters: the gate starts at 0.5, the temporal branch at 0."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def initialise_attention(
    attention: TemporalAttention, norm: nn.LayerNorm, generator: torch.Generator
) -> None:
    """Zero the output projection, weight and bias, as in the paper (the official code leaves the
    bias random). q, k and v keep the usual initialisation of linear layers: if they were zero, no
    gradient would ever reach them."""
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        bound = 1 / math.sqrt(layer.in_features)
        with torch.no_grad():
            drawn = torch.rand(layer.weight.shape, generator=generator) * 2 * bound - bound
            layer.weight.copy_(drawn)
    for parameter in attention.to_out.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
