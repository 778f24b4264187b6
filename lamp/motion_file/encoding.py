"""Quantized tensors of a compact file (format 2): how they lie in its bytes, and how they are read.

docs/motion_file.md specifies the format. A header comes from strangers: every claim in it is
checked before memory is allocated.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MotionFileError
from ..files.strict_json import read_json

RANK_KEY = "lamp.rank"
"""Header entry: base64 of deflated JSON, tensor name -> `Encoding.entry`, in the order of the
bytes."""
BYTES_KEY = "lamp.compact"
"""The one tensor (uint8) with the bytes of all encoded tensors."""
BITS = (8, 4, 3, 2)
"""Bits of a quantized number."""
PLAIN = 16
"""Bits of a number that is stored as fp16, in a row without a scale."""

# A row's scale follows from its largest value; clipping that value quantizes the others finer.
_CLIPS = (1.0, 0.85, 0.7, 0.55, 0.45)
# Far above any honest file: a tensor of an SD-XL motion has 5 M numbers, its header entry 90 kB.
_MAX_NUMBERS = 2**24
_MAX_TEXT = 2**18


@dataclass(frozen=True)
class Encoding:
    """How one tensor `o ...` is stored, seen as a matrix `o n`.

    - ``ranks``: the number of components in 8, 4, 3 and 2 bits. The tensor is the sum of their
      products `up^T down`, with factors `up` (`r o`) and `down` (`r n`) for each number of bits;
    - ``shape``: the tensor's shape;
    - ``bits``: if set, there are no components: the matrix itself is stored in so many bits.

    The bytes hold `up`, then `down` of the 8-bit components, then those of 4 bits, and so on. A row
    is its packed numbers and its scale in bf16.
    """

    ranks: tuple[int, ...]
    shape: tuple[int, ...]
    bits: int = 0

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """Rows, columns and bits of each quantized matrix, in the order of the bytes."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        if self.bits:
            return [(rows, columns, self.bits)]
        parts = zip(self.ranks, BITS, strict=True)
        return [(r, c, bits) for r, bits in parts if r for c in (rows, columns)]

    @property
    def bytes(self) -> int:
        return sum(rows * row_bytes(columns, bits) for rows, columns, bits in self.matrices)

    @property
    def entry(self) -> list[Any]:
        """The header entry."""
        return [self.bits or list(self.ranks), *self.shape]


# --- numbers --------------------------------------------------------------------------------------


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of a row: packed numbers and a bf16 scale."""
    return 2 * columns if bits == PLAIN else -(-columns * bits // 8) + 2


def quantize(matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Each row as whole numbers 0..2^bits-1 and a bf16 scale, with the best of `_CLIPS`."""
    top = 2**bits - 1
    peak = matrix.abs().amax(1)
    tries = []
    for clip in _CLIPS:
        # Rounded to bf16 first, so that rounding the scale costs no precision.
        scales = (peak * (2.0 * clip / top)).bfloat16()
        steps = scales.float().clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        numbers = (matrix / steps + top / 2).round().clamp(0, top).to(torch.uint8)
        tries.append((numbers, scales))
    errors = torch.stack([(dequantize(*pair, bits) - matrix).square().sum(1) for pair in tries])
    numbers, scales = (torch.stack(each) for each in zip(*tries, strict=True))
    best, rows = errors.argmin(0), torch.arange(len(matrix))
    return numbers[best, rows], scales[best, rows]


def dequantize(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:
    """value = (number - (2^bits - 1) / 2) * scale, in fp32."""
    return (numbers.float() - (2**bits - 1) / 2) * scales.float()[:, None]


def quantization_error(matrix: Tensor, bits: int) -> Tensor:
    """The squared error of each row."""
    return (dequantize(*quantize(matrix, bits), bits) - matrix).square().sum(1)


def pack(matrix: Tensor, bits: int) -> Tensor:
    """Rows of bytes: the numbers' bits, low ones first, then the scale."""
    if bits == PLAIN:
        return matrix.half().contiguous().view(torch.uint8)
    numbers, scales = quantize(matrix, bits)
    each = np.unpackbits(numbers.numpy()[..., None], axis=2, count=bits, bitorder="little")
    packed = np.packbits(each.reshape(len(each), -1), axis=1, bitorder="little")
    return torch.cat([torch.from_numpy(packed), scales[:, None].contiguous().view(torch.uint8)], 1)


def unpack(rows: Tensor, columns: int, bits: int) -> Tensor:
    """The matrix that `pack` stored, in fp32."""
    # Clones, because a view as 16-bit numbers needs aligned memory.
    if bits == PLAIN:
        return rows.clone(memory_format=torch.contiguous_format).view(torch.float16).float()
    scales = rows[:, -2:].clone(memory_format=torch.contiguous_format).view(torch.bfloat16)
    each = np.unpackbits(rows[:, :-2].numpy(), axis=1, count=columns * bits, bitorder="little")
    numbers = np.packbits(each.reshape(len(each), columns, bits), axis=2, bitorder="little")
    return dequantize(torch.from_numpy(numbers[..., 0]), scales[:, 0], bits)


# --- whole files ----------------------------------------------------------------------------------


def encode(tensors: Mapping[str, tuple[Encoding, Sequence[Tensor]]]) -> tuple[Tensor, str]:
    """The bytes (uint8) and the text of `RANK_KEY`, from the matrices of each encoding."""
    parts = [torch.zeros(0, dtype=torch.uint8)]
    for encoding, matrices in tensors.values():
        for matrix, (_, _, bits) in zip(matrices, encoding.matrices, strict=True):
            parts.append(pack(matrix, bits).flatten())
    entries = json.dumps({name: encoding.entry for name, (encoding, _) in tensors.items()})
    # Deflated, because in a small motion the tensor names would take half as much as the numbers.
    return torch.cat(parts), base64.b64encode(zlib.compress(entries.encode())).decode()


def decode(
    file: str, tensors: Mapping[str, Tensor], encodings: Mapping[str, Encoding]
) -> dict[str, Tensor]:
    """All tensors of a motion, the encoded ones in fp16, from the tensors of its file.

    Args:
        file: its name, for errors.
        encodings: see `read_encodings`. A small file can claim large tensors, so the caller has
            checked that their shapes are those of a motion.

    Raises:
        MotionFileError: header and tensors do not belong together.
    """
    state = dict(tensors)
    data = state.pop(BYTES_KEY, None)
    wanted = sum(encoding.bytes for encoding in encodings.values())
    if data is None or data.dtype != torch.uint8 or tuple(data.shape) != (wanted,):
        found = "is missing" if data is None else f"is {data.dtype} of shape {tuple(data.shape)}"
        raise _damaged(file, f"'{BYTES_KEY}' {found}, its header claims {wanted} bytes")
    for name, encoding in encodings.items():
        if name in state:
            raise _damaged(file, f"it holds '{name[:100]}' twice")
        state[name], data = _decoded(data[: encoding.bytes], encoding), data[encoding.bytes :]
    return state


def _decoded(data: Tensor, encoding: Encoding) -> Tensor:
    shape = encoding.shape
    if not encoding.matrices:  # rank zero: no bytes on disk, and none in memory
        return torch.zeros((), dtype=torch.float16).expand(shape)
    matrices = []
    for rows, columns, bits in encoding.matrices:
        size = rows * row_bytes(columns, bits)
        matrices.append(unpack(data[:size].reshape(rows, -1), columns, bits))
        data = data[size:]
    if encoding.bits:
        (whole,) = matrices
    else:
        whole = torch.zeros(shape[0], math.prod(shape[1:]))
        for up, down in zip(matrices[::2], matrices[1::2], strict=True):
            whole.addmm_(up.T, down)
    half = whole.reshape(shape).half()
    return half if torch.isfinite(half).all() else whole.reshape(shape)


def read_encodings(file: str, header: str) -> dict[str, Encoding]:
    """The encoding of each tensor, from the text of `RANK_KEY`.

    Raises:
        MotionFileError: it is damaged, or claims more than any motion has.
    """
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(base64.b64decode(header, validate=True), _MAX_TEXT)
        if not inflate.eof or inflate.unused_data:
            raise ValueError(f"it is longer than {_MAX_TEXT:,} bytes")
        return dict(_checked(read_json(text)))
    except (AttributeError, TypeError, ValueError, zlib.error) as error:
        raise _damaged(file, f"'{RANK_KEY}' in its header: {str(error)[:100]}") from error


def _checked(entries: dict[str, Any]) -> Iterator[tuple[str, Encoding]]:
    for name, entry in entries.items():
        if type(entry) is not list or not entry:
            raise TypeError(f"{name[:100]} is not a list")
        kind, *shape = entry
        ranks = kind if type(kind) is list else []
        if any(type(number) is not int for number in [*ranks, *shape, 0 if ranks else kind]):
            raise TypeError(f"{name[:100]} holds something other than whole numbers")
        if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) > _MAX_NUMBERS:
            raise ValueError(f"{name[:100]} has shape {shape[:8]}")
        if ranks:
            if len(ranks) != len(BITS) or min(ranks) < 0 or sum(ranks) > shape[0]:
                raise ValueError(f"{name[:100]} has ranks {ranks[:8]}")
            if len(shape) == 1 and not any(ranks):  # vectors bound the size of the other tensors
                raise ValueError(f"{name[:100]} is a vector of rank zero")
            yield name, Encoding(tuple(ranks), tuple(shape))
        elif kind in (*BITS, PLAIN):
            yield name, Encoding((), tuple(shape), kind)
        else:
            raise ValueError(f"{name[:100]} has {kind} bits")


def _damaged(file: str, reason: str) -> MotionFileError:
    return MotionFileError(f"The compact file {file} is damaged ({reason}). Download it again.")
