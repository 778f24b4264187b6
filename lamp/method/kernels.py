"""Triton kernels of the motion layers. Import only where Triton is installed, see `fused`.

All sums are in fp32 and rounded once. Videos are `(b f) c h w` with n = h w positions.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gate_kernel(
    y, weight, bias, maps, rows, frames, channels, positions,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0)
    at = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    inside = at < positions
    taps = tl.arange(0, 16)  # nine; a product needs 16 rows
    total = tl.zeros((16, POSITIONS), tl.float32)
    source = y + frame.to(tl.int64) * channels * positions
    in_video = frame % frames
    for start in range(0, channels, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        known = channel < channels
        tile = tl.load(
            source + channel[:, None] * positions + at[None, :],
            mask=known[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        kernel = tl.load(
            weight + channel[None, :] * 9 + taps[:, None],
            mask=known[None, :] & (taps < 9)[:, None], other=0.0,
        )  # fmt: skip
        total += tl.dot(kernel, tile, input_precision="ieee")
        if ROWS:
            # The windows of this frame and the next two each take this frame once.
            for tap in tl.static_range(3):
                shown = frame.to(tl.int64) + 2 - tap
                row = (shown * positions + at[None, :]) * (3 * channels)
                tl.store(
                    rows + row + tap * channels + channel[:, None], tile,
                    mask=known[:, None] & inside[None, :] & (in_video + 2 - tap < frames),
                )  # fmt: skip
                missing = (frame.to(tl.int64) * positions + at[None, :]) * (3 * channels)
                tl.store(
                    rows + missing + tap * channels + channel[:, None], tl.zeros_like(tile),
                    mask=known[:, None] & inside[None, :] & (in_video < 2 - tap),
                )  # fmt: skip
    # The centre tap is inside the picture at every position, so the bias can be there.
    total += tl.where(taps == 4, tl.load(bias).to(tl.float32), 0.0)[:, None]
    tl.store(
        maps + (frame.to(tl.int64) * 9 + taps[:, None]) * positions + at[None, :], total,
        mask=(taps < 9)[:, None] & inside[None, :],
    )  # fmt: skip


def gate(y: Tensor, weight: Tensor, bias: Tensor, frames: int, rows: bool) -> tuple[Tensor, Tensor]:
    """What each position adds to the gate of its nine neighbours, `(b f) 9 n` in fp32.

    Args:
        y: `(b f) c n`, contiguous.
        weight: `1 c 3 3`; ``bias``: `1`, in the dtype of y.
        rows: also return the windows of three frames as rows, `(b f n) (3 c)`, for one product;
            otherwise that tensor is empty.
    """
    count, channels, positions = y.shape
    maps = y.new_empty((count, 9, positions), dtype=torch.float32)
    windows = y.new_empty((count * positions if rows else 0, 3 * channels))
    block = 32 if rows else 64
    grid = (count, triton.cdiv(positions, block))
    _gate_kernel[grid](
        y, weight, bias, maps, windows, frames, channels, positions,
        ROWS=rows, CHANNELS=64, POSITIONS=block,
    )  # fmt: skip
    return maps, windows


@triton.jit
def _gated_sum_kernel(
    onto, temporal, bias, maps, factor, out, strength,
    channels, height, width, t_channel, t_position, f_frame, f_position,
    BIAS: tl.constexpr, FACTOR: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    positions = height * width
    at = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    inside = at < positions
    row = at // width
    column = at % width
    gate = tl.zeros((POSITIONS,), tl.float32)
    for tap in tl.static_range(9):
        above = row + tap // 3 - 1
        left = column + tap % 3 - 1
        seen = inside & (above >= 0) & (above < height) & (left >= 0) & (left < width)
        place = maps + (frame * 9 + tap) * positions + above * width + left
        gate += tl.load(place, mask=seen, other=0.0)
    gate = strength / (1.0 + tl.exp(-gate))
    if FACTOR:
        scale = tl.load(factor + frame * f_frame + at * f_position, mask=inside, other=0.0)
        gate = gate * scale.to(tl.float32)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    valid = (channel < channels)[:, None] & inside[None, :]
    image = frame * channels * positions
    place = image + channel[:, None] * positions + at[None, :]
    moved = image + channel[:, None] * t_channel + at[None, :] * t_position
    added = tl.load(temporal + moved, mask=valid, other=0.0).to(tl.float32)
    if BIAS:
        shift = tl.load(bias + channel, mask=channel < channels, other=0.0)
        added += shift.to(tl.float32)[:, None]
    base = tl.load(onto + place, mask=valid, other=0.0).to(tl.float32)
    tl.store(out + place, (base + gate[None, :] * added).to(out.dtype.element_ty), mask=valid)


def gated_sum(
    onto: Tensor,
    temporal: Tensor,
    bias: Tensor | None,
    maps: Tensor,
    factor: Tensor | None,
    strength: float,
    out: Tensor,
) -> Tensor:
    """Write onto + strength factor sigmoid(gate) (temporal + bias) to `out`.

    Args:
        onto, out: `(b f) c h w`, contiguous.
        temporal: `(b f) c n`, which may share its memory with `out`, or `(b f n) c`; contiguous.
        maps: from `gate`.
        factor: `(b f) 1 h w` or `(b f) 1 1 1`.
    """
    count, channels, height, width = onto.shape
    positions = height * width
    steps = (1, channels) if temporal.ndim == 2 else (positions, 1)
    scale, f_steps = factor, (0, 0)
    if factor is not None:
        spread = factor.expand(count, 1, height, width)
        scale = factor if spread.stride(3) == 0 else spread.contiguous()
        f_steps = (spread.stride(0), 0) if spread.stride(3) == 0 else (positions, 1)
    block = 64
    grid = (count, triton.cdiv(positions, block), triton.cdiv(channels, 32))
    _gated_sum_kernel[grid](
        onto, temporal, bias, maps, scale, out, strength,
        channels, height, width, *steps, *f_steps,
        BIAS=bias is not None, FACTOR=factor is not None, CHANNELS=32, POSITIONS=block,
    )  # fmt: skip
    return out


@triton.jit
def _moments_kernel(x, moments, size, BLOCK: tl.constexpr):
    """Mean and sum of squared distances from it of `size` values in a row of memory."""
    group = tl.program_id(0).to(tl.int64)
    x += group * size
    mean = 0.0
    squares = 0.0
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
        count = tl.minimum(size - start, BLOCK).to(tl.float32)
        here = tl.sum(value) / count
        away = tl.where(at < size, value - here, 0.0)
        # Chan et al.: no difference of large sums, which would lose digits in fp16 models.
        apart = here - mean
        whole = start + count
        squares += tl.sum(away * away) + apart * apart * (start * count / whole)
        mean += apart * (count / whole)
    tl.store(moments + group * 2, mean)
    tl.store(moments + group * 2 + 1, squares)


@triton.jit
def _normalise_kernel(
    x, moments, weight, bias, out, eps, frames, groups, size, positions, width,
    FRAMES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0).to(tl.int64)  # one group of one frame
    group = part % groups
    first = part // groups // frames * frames
    each = tl.arange(0, FRAMES)
    place = moments + ((first + each) * groups + group) * 2
    means = tl.load(place, mask=each < frames, other=0.0)
    squares = tl.load(place + 1, mask=each < frames, other=0.0)
    mean = tl.sum(means) / frames
    away = tl.where(each < frames, means - mean, 0.0)
    variance = (tl.sum(squares) / size + tl.sum(away * away)) / frames
    scale = 1.0 / tl.sqrt(variance + eps)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = group * width + at // positions
    inside = at < size
    value = tl.load(x + part * size + at, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    value = (value - mean) * scale * gain + shift
    tl.store(out + part * size + at, value.to(out.dtype.element_ty), mask=inside)


def pooled_norm(
    x: Tensor, frames: int, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """GroupNorm of `(b f) c h w`, contiguous, with statistics over all frames of each video."""
    count, channels = x.shape[:2]
    positions = x[0, 0].numel()
    width = channels // groups
    size = width * positions
    moments = x.new_empty((count * groups, 2), dtype=torch.float32)
    _moments_kernel[(count * groups,)](x, moments, size, BLOCK=2048)
    out = torch.empty_like(x)
    _normalise_kernel[(count * groups, triton.cdiv(size, 2048))](
        x, moments, weight, bias, out, eps, frames, groups, size, positions, width,
        FRAMES=triton.next_power_of_2(frames), BLOCK=2048,
    )  # fmt: skip
    return out


@triton.jit
def _attention_kernel(
    q, k, v, out, scale, frames, heads, step, width,
    FRAMES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One sequence: all frames of one head at one position."""
    head = tl.program_id(0) % heads
    position = tl.program_id(0) // heads
    video = tl.program_id(1).to(tl.int64)
    frame = tl.arange(0, FRAMES)
    part = tl.arange(0, WIDTH)
    start = video * frames * step + position * heads * width + head * width
    place = start + frame[:, None].to(tl.int64) * step + part[None, :]
    valid = (frame < frames)[:, None] & (part < width)[None, :]
    query = tl.load(q + place, mask=valid, other=0.0)
    key = tl.load(k + place, mask=valid, other=0.0)
    value = tl.load(v + place, mask=valid, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where((frame < frames)[None, :], scores, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    scores = scores / tl.sum(scores, 1)[:, None]
    mixed = tl.dot(scores.to(value.dtype), value, input_precision="ieee")
    tl.store(out + place, mixed.to(out.dtype.element_ty), mask=valid)


def frame_attention(q: Tensor, k: Tensor, v: Tensor, frames: int, heads: int) -> Tensor:
    """Attention over the frames at each position, on contiguous projections `(b f) n (h d)`.

    At most 64 frames: a sequence is in the registers of one program.
    """
    count, positions, channels = q.shape
    width = channels // heads
    out = torch.empty_like(q)
    padded = triton.next_power_of_2(width)
    grid = (positions * heads, count // frames)
    _attention_kernel[grid](
        q, k, v, out, width**-0.5, frames, heads, positions * channels, width,
        FRAMES=max(16, triton.next_power_of_2(frames)), WIDTH=max(16, padded),
        num_warps=1 if padded <= 64 else 2 if padded <= 128 else 4,
    )  # fmt: skip
    return out
