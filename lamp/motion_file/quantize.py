"""Rows of numbers in few bits, each with a scale of its own: what a compact motion is made of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BITS = (8, 4, 3, 2)
"""Of a number that is rounded."""
PLAIN = 16
"""Of a number that is not: fp16, and its row has no scale."""
# A row's largest value decides on its scale; cutting something off it rounds the rest finer.
_CUTS = (1.0, 0.85, 0.7, 0.55, 0.45)


def row_bytes(columns: int, bits: int) -> int:
    """What a row takes: its numbers, and the scale in bf16."""
    return 2 * columns if bits == PLAIN else -(-columns * bits // 8) + 2


def seen(matrix: Tensor, bits: int) -> Tensor:
    """The matrix as a reader will have it."""
    return _values(*_rounded(matrix, bits), bits)


def loss(matrix: Tensor, bits: int) -> Tensor:
    """What rounding does to each row: squared distance."""
    return (seen(matrix, bits) - matrix).square().sum(1)


def to_bytes(matrix: Tensor, bits: int) -> Tensor:
    """Rows of bytes: the bits of the numbers one after another, low ones first; then the scale."""
    if bits == PLAIN:
        return matrix.half().contiguous().view(torch.uint8)
    numbers, scales = _rounded(matrix, bits)
    each = np.unpackbits(numbers.numpy()[..., None], axis=2, count=bits, bitorder="little")
    packed = np.packbits(each.reshape(len(each), -1), axis=1, bitorder="little")
    return torch.cat([torch.from_numpy(packed), scales[:, None].contiguous().view(torch.uint8)], 1)


def from_bytes(rows: Tensor, columns: int, bits: int) -> Tensor:
    """The matrix, in fp32, from what `to_bytes` gave."""
    # Copies: bytes at an odd place cannot be seen as numbers of two.
    if bits == PLAIN:
        return rows.clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    scales = rows[:, -2:].clone(memory_format=torch.contiguous_format).view(torch.bfloat16)
    each = np.unpackbits(rows[:, :-2].numpy(), axis=1, count=columns * bits, bitorder="little")
    numbers = np.packbits(each.reshape(len(each), columns, bits), axis=2, bitorder="little")
    return _values(torch.from_numpy(numbers[..., 0]), scales[:, 0], bits)


def _rounded(matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers 0..2^bits-1 and a scale, the best of `_CUTS`.

    value = (number - (2^bits - 1) / 2) * scale. The scales are bf16 before anything is rounded by
    them, so they cost 2 bytes and no exactness.
    """
    top = 2**bits - 1
    peak = matrix.abs().amax(1)
    tries = []
    for cut in _CUTS:
        scales = (peak * (2.0 * cut / top)).bfloat16()
        steps = scales.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        numbers = (matrix / steps + top / 2).round().clamp(0, top).to(torch.uint8)
        tries.append((numbers, scales))
    losses = torch.stack([(_values(*pair, bits) - matrix).square().sum(1) for pair in tries])
    best = losses.argmin(0)
    numbers, scales = (torch.stack(each) for each in zip(*tries, strict=True))
    rows = torch.arange(len(matrix))
    return numbers[best, rows], scales[best, rows]


def _values(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:
    return (numbers.float() - (2**bits - 1) / 2) * scales.float()[:, None]
