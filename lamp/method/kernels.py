"""Triton kernels of the motion layers. Import only where Triton is installed, see `fused`.

All sums are in fp32 and rounded once. Videos are `(b f) c h w` with n = h w positions.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gate_kernel(
    y, weight, bias, maps, channels, positions,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * POSITIONS + tl.arange(0, POSITIONS)
    inside = at < positions
    taps = tl.arange(0, 16)  # nine; a product needs 16 rows
    total = tl.zeros((16, POSITIONS), tl.float32)
    source = y + frame * channels * positions
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
    # The centre tap is inside the picture at every position, so the bias can be there.
    total += tl.where(taps == 4, tl.load(bias).to(tl.float32), 0.0)[:, None]
    tl.store(
        maps + (frame * 9 + taps[:, None]) * positions + at[None, :], total,
        mask=(taps < 9)[:, None] & inside[None, :],
    )  # fmt: skip


def gate(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What each position adds to the gate of its nine neighbours, `(b f) 9 n` in fp32.

    Args:
        y: `(b f) c n`, contiguous.
        weight: `1 c 3 3`; ``bias``: `1`, in the dtype of y.
    """
    count, channels, positions = y.shape
    maps = y.new_empty((count, 9, positions), dtype=torch.float32)
    block = 64 if positions > 256 else 16  # small frames would fill few cores
    _gate_kernel[(count, triton.cdiv(positions, block))](
        y, weight, bias, maps, channels, positions, CHANNELS=64, POSITIONS=block,
    )  # fmt: skip
    return maps


@triton.jit
def _motion_conv_kernel(
    y, taps, bias, maps, factor, onto, out, strength,
    frames, channels, positions, height, width, f_frame, f_position,
    FACTOR: tl.constexpr, RUN: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A product over the windows of three frames, whose channels are contiguous in memory."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * COLUMNS
    column = first + tl.arange(0, COLUMNS)  # one position of one frame
    video = tl.program_id(2).to(tl.int64) * frames
    # Loads of RUN values need to know that none of them crosses the end of a frame.
    frame = tl.max_constancy(column // positions, RUN)
    at = column % positions
    image = frame.to(tl.int64) * channels * positions + at
    y += video * channels * positions
    onto += video * channels * positions
    out += video * channels * positions

    depth = tl.arange(0, DEPTH)
    known = frame < frames
    missing = (2 - frame) * channels  # windows of frames 1 and 2 start before the video
    total = tl.zeros((CHANNELS, COLUMNS), tl.float32)
    latest = tl.minimum((first + COLUMNS - 1) // positions, frames - 1)
    for start in range(tl.maximum(2 - latest, 0) * channels, 3 * channels, DEPTH):
        row = start + depth
        place = (row - 2 * channels)[:, None] * positions + image[None, :]
        place = tl.max_contiguous(tl.multiple_of(place, [1, RUN]), [1, RUN])
        seen = (row[:, None] >= missing[None, :]) & known[None, :]
        tile = tl.load(y + place, mask=seen & (row < 3 * channels)[:, None], other=0.0)
        kernel = tl.load(
            taps + row[None, :] * channels + channel[:, None],
            mask=(row < 3 * channels)[None, :] & (channel < channels)[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(kernel, tile, total, input_precision="ieee")

    row = at // width
    left = at % width
    gate = tl.zeros((COLUMNS,), tl.float32)
    for tap in tl.static_range(9):
        above = row + tap // 3 - 1
        beside = left + tap % 3 - 1
        seen = known & (above >= 0) & (above < height) & (beside >= 0) & (beside < width)
        place = maps + ((video + frame) * 9 + tap) * positions + above * width + beside
        gate += tl.load(place, mask=seen, other=0.0)
    gate = strength / (1.0 + tl.exp(-gate))
    if FACTOR:
        place = factor + (video + frame) * f_frame + at * f_position
        gate *= tl.load(place, mask=known, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    place = channel[:, None] * positions + image[None, :]
    place = tl.max_contiguous(tl.multiple_of(place, [1, RUN]), [1, RUN])
    valid = (channel < channels)[:, None] & known[None, :]
    base = tl.load(onto + place, mask=valid, other=0.0).to(tl.float32)
    total = base + gate[None, :] * (total + shift[:, None])
    tl.store(out + place, total.to(out.dtype.element_ty), mask=valid)


def motion_conv(
    y: Tensor,
    taps: Tensor,
    bias: Tensor,
    maps: Tensor,
    factor: Tensor | None,
    onto: Tensor,
    frames: int,
    strength: float,
) -> Tensor:
    """onto + strength factor sigmoid(gate) (conv1d(y) + bias), with a causal conv1d over frames.

    Args:
        y, onto: `(b f) c h w`, contiguous.
        taps: `(3 c) c_out`, contiguous; ``bias``: `c_out`; in the dtype of y.
        maps: from `gate`.
        factor: `(b f) 1 h w` or `(b f) 1 1 1`.
    """
    count, channels, height, width = y.shape
    positions = height * width
    scale, f_steps = factor, (0, 0)
    if factor is not None:
        spread = factor.expand(count, 1, height, width)
        scale = factor if spread.stride(3) == 0 else spread.contiguous()
        f_steps = (spread.stride(0), 0) if spread.stride(3) == 0 else (positions, 1)
    out = torch.empty_like(onto)
    rows = 128 if channels % 128 == 0 else 64 if channels > 32 else 16
    columns = 128 if frames * positions > 1024 else 64  # small frames would fill few cores
    grid = (triton.cdiv(channels, rows), triton.cdiv(frames * positions, columns), count // frames)
    _motion_conv_kernel[grid](
        y, taps, bias, maps, scale, onto, out, strength,
        frames, channels, positions, height, width, *f_steps,
        FACTOR=factor is not None, RUN=math.gcd(positions, 8),
        CHANNELS=rows, COLUMNS=columns, DEPTH=32, num_warps=4, num_stages=4,
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
    SILU: tl.constexpr, FRAMES: tl.constexpr, BLOCK: tl.constexpr,
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
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + part * size + at, value.to(out.dtype.element_ty), mask=inside)


def pooled_norm(
    x: Tensor, frames: int, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
) -> Tensor:
    """GroupNorm of `(b f) c h w`, contiguous, with statistics over all frames of each video; with
    `silu` followed by that activation."""
    count, channels = x.shape[:2]
    positions = x[0, 0].numel()
    width = channels // groups
    size = width * positions
    moments = x.new_empty((count * groups, 2), dtype=torch.float32)
    _moments_kernel[(count * groups,)](x, moments, size, BLOCK=2048)
    out = torch.empty_like(x)
    _normalise_kernel[(count * groups, triton.cdiv(size, 2048))](
        x, moments, weight, bias, out, eps, frames, groups, size, positions, width,
        SILU=silu, FRAMES=triton.next_power_of_2(frames), BLOCK=2048,
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
