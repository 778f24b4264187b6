"""The compact form of a motion: each tensor as low-rank factors of few bits, chosen by energy.

A tensor `o ...` is a matrix `M = o n`. Its best approximation of rank r keeps the energy
sum_{k<r} s_k^2 of its singular values; the factors are rounded to 4 or 8 bits, each vector with a
scale of its own. Where a matrix has no small rank, such as the queries and keys of the temporal
attention, which begin as noise, its rows are rounded instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import LampError, MotionFileError

RANK_KEY = "lamp.rank"
"""Header entry: JSON, tensor name -> `[bits, rank, *shape]`, of the tensors stored as a `Form`."""
ENERGY = 0.88
"""The share of each tensor's energy that is kept unless another one is asked for."""
# Queries, keys and values over the frames begin as noise and mostly stay it: on toy motions the
# prediction hardly changes with them, so that the bytes serve better elsewhere. Of these the share
# is the energy to this power.
_POWERS = {".attn_temp.to_q.": 8, ".attn_temp.to_k.": 8, ".attn_temp.to_v.": 4}
Factors = tuple[Tensor, Tensor]
"""`up` (`r o`) and `down` (`r ...`) of a tensor `o ...`, which is up^T down."""

_BITS = (4, 8)
# A vector's largest value decides on its scale; cutting a little off it rounds the rest finer.
_CUTS = (1.0, 0.85, 0.7)
# Nothing honest is larger: SD-XL's motion has 1.1 G numbers in all, 5 M in a tensor.
_MOST_NUMBERS = 2**27
_MOST_IN_ALL = 2**31


@dataclass(frozen=True)
class Form:
    """How a tensor is stored: as one row of bytes.

    - ``bits``: of a number, 4 or 8;
    - ``rank``: of the factors `up` (`r o`) and `down` (`r n`), whose product `up^T down` it is; 0:
      not in factors, `down` are its own rows (`o n`);
    - ``shape``: the tensor's own.

    The bytes are `up`, then `down`; of each row its numbers, and its scale in bf16.
    """

    bits: int
    rank: int
    shape: tuple[int, ...]

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """The shapes of what is rounded row by row."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        if not self.rank:
            return [(rows, columns)]
        return [(self.rank, rows), (self.rank, columns)]

    @property
    def bytes(self) -> int:
        return sum(rows * _row_bytes(columns, self.bits) for rows, columns in self.matrices)


def check_energy(energy: float) -> None:
    """Raises LampError unless 0 < energy <= 1."""
    if not 0.0 < energy <= 1.0:
        raise LampError(
            f"energy is {energy:g}: it is the share of each tensor that is kept, above 0 and at "
            f"most 1 (the default is {ENERGY:g})."
        )


def compress(state: Mapping[str, Tensor], energy: float) -> tuple[dict[str, Tensor], str]:
    """The bytes (uint8) to store in place of some tensors, and the text of `RANK_KEY`.

    Of each tensor at least the share `share_kept` of its squared norm is kept, in the form that
    takes the fewest bytes; a tensor for which no form is smaller than fp16 is left out.
    """
    stored, forms = {}, {}
    for name, tensor in state.items():
        if tensor.ndim < 2:
            continue
        found = _smallest_form(tensor.detach().float().cpu(), share_kept(name, energy))
        if found is not None:
            form, matrices = found
            forms[name] = [form.bits, form.rank, *form.shape]
            stored[name] = _bytes_of(matrices, form.bits)
    return stored, json.dumps(forms, separators=(",", ":"))


def share_kept(name: str, energy: float) -> float:
    """The share of its squared norm that is kept of a tensor."""
    return energy ** next((power for part, power in _POWERS.items() if part in name), 1)


def compress_factors(factors: Mapping[str, Factors]) -> tuple[dict[str, Tensor], str]:
    """As `compress`, of tensors that are products already: 8 bits, and nothing is cut off."""
    stored, forms = {}, {}
    for name, (up, down) in factors.items():
        matrices = _apart(up.detach().float().cpu(), down.detach().float().cpu().flatten(1))
        forms[name] = [8, len(up), up.shape[1], *down.shape[1:]]
        stored[name] = _bytes_of(matrices, 8)
    return stored, json.dumps(forms, separators=(",", ":"))


def expand(file: str, tensors: Mapping[str, Tensor], header: str) -> dict[str, Tensor]:
    """The tensors of a motion, those that were compressed in fp16, from what its file holds.

    Args:
        file: its name, for errors.
        header: the text of `RANK_KEY`.

    Raises:
        MotionFileError: header and tensors do not belong together.
    """
    state = dict(tensors)
    for name, form in _read_forms(file, header).items():
        data = state.get(name)
        if data is None:
            raise _damaged(file, f"tensor '{name[:100]}' is missing")
        if data.dtype != torch.uint8 or tuple(data.shape) != (form.bytes,):
            raise _damaged(
                file,
                f"tensor '{name[:100]}' holds {data.dtype} of shape {tuple(data.shape)}, its "
                f"header tells of {form.bytes} bytes",
            )
        state[name] = _whole(data, form)
    return state


def _bytes_of(matrices: Iterable[Tensor], bits: int) -> Tensor:
    rows = [_to_bytes(*_rounded(matrix, bits), bits) for matrix in matrices]
    return torch.cat([part.flatten() for part in rows])


def _whole(data: Tensor, form: Form) -> Tensor:
    matrices = []
    for rows, columns in form.matrices:
        size = rows * _row_bytes(columns, form.bits)
        matrices.append(_from_bytes(data[:size].reshape(rows, -1), columns, form.bits))
        data = data[size:]
    whole = matrices[0] if len(matrices) == 1 else matrices[0].T @ matrices[1]
    half = whole.reshape(form.shape).half()
    return half if torch.isfinite(half).all() else whole.reshape(form.shape)


def _smallest_form(tensor: Tensor, energy: float) -> tuple[Form, list[Tensor]] | None:
    """The form of fewest bytes that keeps the energy, with the matrices to round for it."""
    matrix, shape = tensor.flatten(1), tuple(tensor.shape)
    total = matrix.square().sum().item()
    allowed = (1.0 - energy) * total
    up, down = _components(matrix)
    found = []
    for bits in _BITS:
        if _loss(matrix, bits).sum().item() <= allowed:
            found.append((Form(bits, 0, shape), [matrix]))
        rank = _rank(up, down, bits, allowed, total)
        if rank:
            found.append((Form(bits, rank, shape), [up[:rank], down[:rank]]))
    best = min(found, key=lambda entry: entry[0].bytes, default=None)
    return best if best is not None and best[0].bytes < 2 * tensor.numel() else None


def _components(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """M = sum_k up_k down_k^T, strongest first: `up` orthonormal rows `o o`, `down` `o n`.

    By the eigenvectors of M M^T, in double precision: at `1280 3840` far faster than an SVD, and
    the error that this brings lies in the components that are cut off.
    """
    exact = matrix.double()
    _, vectors = torch.linalg.eigh(exact @ exact.T)
    up = vectors.flip(1).T
    return up.float(), (up @ exact).float()


def _apart(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product as `_components` gives them, so that rounding a weak component
    is no error of a strong one."""
    basis, rest = torch.linalg.qr(up.T.double())
    other_basis, other_rest = torch.linalg.qr(down.T.double())
    u, values, v = torch.linalg.svd(rest @ other_rest.T)
    return (basis @ u).T.float(), (values[:, None] * (v @ other_basis.T)).float()


def _rank(up: Tensor, down: Tensor, bits: int, allowed: float, total: float) -> int:
    """The least rank whose rounded factors lose no more than `allowed`; 0 if there is none.

    The components are orthogonal, so the losses of each add up: in its `up`, in its `down`, and
    wholly if it is cut off.
    """
    strength = down.square().sum(1)
    rounding = _loss(up, bits) * strength + _loss(down, bits)
    lost = total - strength.cumsum(0) + rounding.cumsum(0)
    enough = (lost <= allowed).nonzero()
    return int(enough[0]) + 1 if len(enough) else 0


# --- rounding ---------------------------------------------------------------------------------


def _loss(matrix: Tensor, bits: int) -> Tensor:
    """What rounding does to each row: squared distance."""
    numbers, scales = _rounded(matrix, bits)
    return (_values(numbers, scales, bits) - matrix).square().sum(1)


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


def _row_bytes(columns: int, bits: int) -> int:
    return -(-columns * bits // 8) + 2


def _to_bytes(numbers: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Rows of bytes: two numbers of 4 bits in each, the first one low, then the scale."""
    if bits == 4:
        padded = torch.nn.functional.pad(numbers, (0, numbers.shape[1] % 2))
        numbers = padded[:, ::2] | (padded[:, 1::2] << 4)
    return torch.cat([numbers, scales[:, None].contiguous().view(torch.uint8)], 1)


def _from_bytes(rows: Tensor, columns: int, bits: int) -> Tensor:
    # A copy: bytes at an odd place cannot be seen as numbers of two.
    ends = rows[:, -2:].clone(memory_format=torch.contiguous_format)
    numbers, scales = rows[:, :-2], ends.view(torch.bfloat16)[:, 0]
    if bits == 4:
        numbers = torch.stack([numbers & 15, numbers >> 4], 2).flatten(1)[:, :columns]
    return _values(numbers, scales, bits)


# --- reading ----------------------------------------------------------------------------------


def _read_forms(file: str, header: str) -> dict[str, Form]:
    try:
        forms = dict(_checked_forms(json.loads(header)))
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(file, f"'{RANK_KEY}' in its header: {str(error)[:100]}") from error
    if sum(math.prod(form.shape) for form in forms.values()) > _MOST_IN_ALL:
        raise _damaged(file, f"'{RANK_KEY}' in its header tells of more than any motion holds")
    return forms


def _checked_forms(raw: dict[str, Any]) -> Iterator[tuple[str, Form]]:
    """Each value's type and range: a header comes from strangers, and a small file may ask for
    much memory."""
    for name, numbers in raw.items():
        if type(numbers) is not list or any(type(number) is not int for number in numbers):
            raise TypeError(f"{name[:100]} has something else than a list of whole numbers")
        bits, rank, *shape = numbers
        if not 2 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(f"{name[:100]} has shape {shape[:8]}")
        if bits not in _BITS or not 0 <= rank <= shape[0]:
            raise ValueError(f"{name[:100]} has {bits} bits and rank {rank}")
        yield name, Form(bits, rank, tuple(shape))


def _damaged(file: str, reason: str) -> MotionFileError:
    return MotionFileError(f"The compact file {file} is damaged ({reason}): download it again.")
