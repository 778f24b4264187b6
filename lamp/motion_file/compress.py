"""The compact form of a motion: low-rank factors of few bits, where they matter most.

A tensor `o ...` is a matrix `M = o n`. Its best approximation of rank r keeps the energy
sum_{k<r} s_k^2 of its singular values; the factors are rounded, each vector with a scale of its
own, the strong components to more bits than the weak ones. Where a matrix has no small rank, such
as the queries and keys of the temporal attention, which begin as noise, its rows are rounded
instead.

How many bytes each tensor has is decided for all of them at once: there is one price of a byte, and
every component of every tensor takes the bits at which what it loses and what it costs are least
together (Everett 1963). What a tensor loses is its squared error, weighted by how much the
prediction depends on it, which the training has measured (`MotionConfig.importance`).
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import LampError, MotionFileError
from ..files.strict_json import read_json
from .quantize import BITS, PLAIN, from_bytes, loss, row_bytes, seen, to_bytes

RANK_KEY = "lamp.rank"
"""Header entry: base64 of deflated JSON, tensor name -> `Form.entry`, in the order of the bytes in
`BYTES_KEY`."""
BYTES_KEY = "lamp.compact"
"""The one tensor (uint8) that holds the bytes of all of them."""
SIZE = 0.085
"""The share of the full file's bytes that is taken unless another one is asked for."""
# What the importance does not tell, by what the videos of toy motions showed: a gate's error is the
# same at every step and adds up.
_GATE = 10.0
# Where no training has measured it: queries, keys and values over the frames begin as noise and
# mostly stay it.
_NOISE = {".attn_temp.to_q.": 0.2, ".attn_temp.to_k.": 0.2, ".attn_temp.to_v.": 0.5}
Factors = tuple[Tensor, Tensor]
"""`up` (`r o`) and `down` (`r ...`) of a tensor `o ...`, which is up^T down."""

# The price of a byte is sought from 2^-80 of the strongest component up, this often halved.
_PRICES, _HALVINGS = 80.0, 30
_REFITS = 2
# Nothing honest is larger: SD-XL's motion has 5 M numbers in a tensor, and 90 kB tell of all.
_MOST_NUMBERS = 2**24
_MOST_TEXT = 2**18


@dataclass(frozen=True)
class Form:
    """How a tensor is stored: as one row of bytes.

    - ``ranks``: how many components have 8, 4, 3 and 2 bits a number. The tensor is the sum of
      their products `up^T down`, with the factors `up` (`r o`) and `down` (`r n`) of each kind;
    - ``shape``: the tensor's own.

    The bytes are `up`, then `down` of those of 8 bits, then of 4, and so on; of each row its
    numbers, and its scale in bf16. If `bits` is set there are no components: the tensor's own rows
    (`o n`) have so many bits a number; with 16 they are plain fp16 without a scale.
    """

    ranks: tuple[int, ...]
    shape: tuple[int, ...]
    bits: int = 0

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """What is rounded row by row: rows, columns and bits of each matrix."""
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
        """What the header says of it."""
        return [self.bits or list(self.ranks), *self.shape]


def check_size(size: float) -> None:
    """Raises LampError unless 0 < size <= 1."""
    if not 0.0 < size <= 1.0:
        raise LampError(
            f"size is {size:g}: it is the share of the full file that the compact one takes, above "
            f"0 and at most 1 (the default is {SIZE:g})."
        )


def compress(
    state: Mapping[str, Tensor],
    size: float,
    importance: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, str]:
    """The bytes (uint8) to store in place of all tensors, and the text of `RANK_KEY`.

    Args:
        size: the share of what the tensors take in fp16, which the bytes do not exceed.
        importance: see `MotionConfig`; without it, or where it knows not all tensors, a guess by
            the kind of tensor.
        progress: is told how much is done, and of how much; what it raises ends the work.

    Raises:
        LampError: so few bytes cannot hold even the norms and biases.
    """
    weights = _weights(state, importance or {})
    curves: list[_Curve] = []
    for name, tensor in state.items():
        curves.append(_Curve.of(tensor.detach().float().cpu(), weights.get(name, 0.0)))
        progress(len(curves), 2 * len(state))
    forms = _forms(curves, size * 2 * sum(tensor.numel() for tensor in state.values()))
    # Taken apart a second time: to keep all components would take more memory than the motion.
    found: dict[str, tuple[Form, list[Tensor]]] = {}
    for (name, tensor), form in zip(state.items(), forms, strict=True):
        matrix = _matrix(tensor.detach().float().cpu())
        found[name] = (form, [matrix] if form.bits else _factors(matrix, form.ranks))
        progress(len(curves) + len(found), 2 * len(state))
    return _joined(found)


def compress_factors(factors: Mapping[str, Factors]) -> tuple[Tensor, str]:
    """As `compress`, of tensors that are products already: 8 bits, and nothing is cut off."""
    found = {}
    for name, (up, down) in factors.items():
        matrices = _apart(up.detach().float().cpu(), down.detach().float().cpu().flatten(1))
        ranks = (len(up), *[0] * (len(BITS) - 1))
        found[name] = (Form(ranks, (up.shape[1], *down.shape[1:])), list(matrices))
    return _joined(found)


def expand(
    file: str, tensors: Mapping[str, Tensor], forms: Mapping[str, Form]
) -> dict[str, Tensor]:
    """The tensors of a motion, those that were compressed in fp16, from what its file holds.

    Args:
        file: its name, for errors.
        forms: see `read_forms`. A small file may ask for much memory: whoever calls this has seen
            that their shapes are those of a motion.

    Raises:
        MotionFileError: header and tensors do not belong together.
    """
    state = dict(tensors)
    data = state.pop(BYTES_KEY, None)
    wanted = sum(form.bytes for form in forms.values())
    if data is None or data.dtype != torch.uint8 or tuple(data.shape) != (wanted,):
        held = "is missing" if data is None else f"is {data.dtype} of shape {tuple(data.shape)}"
        raise _damaged(file, f"'{BYTES_KEY}' {held}, its header tells of {wanted} bytes")
    for name, form in forms.items():
        if name in state:
            raise _damaged(file, f"it holds '{name[:100]}' twice")
        state[name], data = _whole(data[: form.bytes], form), data[form.bytes :]
    return state


def _joined(found: Mapping[str, tuple[Form, Sequence[Tensor]]]) -> tuple[Tensor, str]:
    parts = [torch.zeros(0, dtype=torch.uint8)]
    for form, matrices in found.values():
        for matrix, (_, _, bits) in zip(matrices, form.matrices, strict=True):
            parts.append(to_bytes(matrix, bits).flatten())
    forms = json.dumps({name: form.entry for name, (form, _) in found.items()})
    # Deflated, since the names of a small motion's tensors fill half as much as their numbers.
    return torch.cat(parts), base64.b64encode(zlib.compress(forms.encode())).decode()


def _whole(data: Tensor, form: Form) -> Tensor:
    if not form.matrices:  # of rank zero: no bytes on the disk, and none in memory
        return torch.zeros((), dtype=torch.float16).expand(form.shape)
    matrices = []
    for rows, columns, bits in form.matrices:
        size = rows * row_bytes(columns, bits)
        matrices.append(from_bytes(data[:size].reshape(rows, -1), columns, bits))
        data = data[size:]
    if form.bits:
        (whole,) = matrices
    else:
        whole = torch.zeros(form.shape[0], math.prod(form.shape[1:]))
        for up, down in zip(matrices[::2], matrices[1::2], strict=True):
            whole.addmm_(up.T, down)
    half = whole.reshape(form.shape).half()
    return half if torch.isfinite(half).all() else whole.reshape(form.shape)


# --- which form -------------------------------------------------------------------------------


def _weights(state: Mapping[str, Tensor], importance: Mapping[str, float]) -> dict[str, float]:
    """What a squared error of each matrix counts, in units of its mean square.

    The fourth root of importance x mean square: that product is what the prediction would lose,
    were the matrix left out, if a large change acted as a small one does; in truth the matrices
    that seem to do nothing do more than that, and those that seem to do everything less.
    """
    matrices = {name: tensor for name, tensor in state.items() if tensor.ndim > 1}
    known, weights = importance.keys() >= matrices.keys(), {}
    for name, tensor in matrices.items():
        mean = tensor.detach().double().square().mean().item()
        if known:
            share = (importance[name] * mean) ** 0.25
        else:
            share = next((share for part, share in _NOISE.items() if part in name), 1.0)
        share *= _GATE if ".conv_gate." in name else 1.0
        weights[name] = share / mean if mean else 0.0
    return weights


@dataclass(frozen=True)
class _Curve:
    """What one tensor loses in each form.

    - ``lost``: of each component in 8, 4, 3 and 2 bits, and left out: `5 r`;
    - ``whole``: of the tensor's own rows, by bits.
    """

    shape: tuple[int, ...]
    lost: Tensor
    whole: dict[int, float]

    @classmethod
    def of(cls, tensor: Tensor, weight: float) -> _Curve:
        shape, matrix = tuple(tensor.shape), _matrix(tensor)
        plain = {PLAIN: 0.0} if tensor.half().isfinite().all() else {}
        if tensor.ndim == 1:  # norms and biases: few, and nothing to be gained
            whole = {bits: loss(matrix, bits).sum().item() for bits in BITS}
            return cls(shape, torch.zeros(len(BITS) + 1, 0), plain or whole)
        whole = {bits: weight * loss(matrix, bits).sum().item() for bits in BITS}
        up, down = _components(matrix)
        strength = down.square().sum(1).double()
        rounded = [loss(up, bits) * strength + loss(down, bits) for bits in BITS]
        return cls(shape, weight * torch.stack([*rounded, strength]), whole | plain)

    @property
    def dearest(self) -> float:
        return self.lost.max().item() if self.lost.numel() else 0.0

    def cheapest(self, price: float) -> Form:
        """The form whose loss and cost are least together."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        found = []
        for bits, lost in self.whole.items():
            form = Form((), self.shape, bits)
            found.append((lost + price * form.bytes, form))
        if self.lost.numel():
            costs = [row_bytes(rows, bits) + row_bytes(columns, bits) for bits in BITS]
            each = self.lost + price * torch.tensor([*costs, 0.0], dtype=torch.float64)[:, None]
            best, kinds = each.min(0)
            ranks = tuple(int((kinds == kind).sum()) for kind in range(len(BITS)))
            found.append((best.sum().item(), Form(ranks, self.shape)))
        return min(found, key=lambda pair: pair[0])[1]


def _forms(curves: Sequence[_Curve], budget: float) -> list[Form]:
    """The forms at the lowest price of a byte at which all together fit into the budget."""
    dearest = max((curve.dearest for curve in curves), default=0.0) or 1.0
    best = [curve.cheapest(dearest) for curve in curves]
    least = sum(form.bytes for form in best)
    if least > budget:
        raise LampError(
            f"The size is too small: it leaves {budget:,.0f} bytes, and the norms and biases alone "
            f"take {least:,}. Choose a larger size (the default is {SIZE:g})."
        )
    low, high = -_PRICES, 0.0  # powers of 2 of the dearest component's loss
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        forms = [curve.cheapest(dearest * 2.0**middle) for curve in curves]
        if sum(form.bytes for form in forms) > budget:
            low = middle
        else:
            high, best = middle, forms
    return best


# --- factors ----------------------------------------------------------------------------------


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


def _components(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """M = sum_k up_k down_k^T, strongest first: `up` orthonormal rows `o o`, `down` `o n`.

    By the eigenvectors of M M^T, in double precision: at `1280 3840` far faster than an SVD, and
    the error that this brings lies in the components that are cut off.
    """
    exact = matrix.double()
    _, vectors = torch.linalg.eigh(exact @ exact.T)
    up = vectors.flip(1).T
    return up.float(), (up @ exact).float()


def _factors(matrix: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    """`up` and `down` of each kind of component; the strong ones have the most bits.

    They are set right for the rounding of one another by least squares: given the rounded `up`, the
    best `down` takes back what the rounding did within the space that its rows still span; and the
    other way round.
    """
    up, down = (factor[: sum(ranks)] for factor in _components(matrix))
    if not len(up):
        return []
    tries = [(up, down)]
    for _ in range(_REFITS):
        down = _nearest(_seen(up, ranks), matrix)
        tries.append((up, down))
        up = _nearest(_seen(down, ranks), matrix.T)
        tries.append((up, down))
    up, down = min(tries, key=lambda pair: _distance(matrix, pair[0], pair[1], ranks))
    parts = zip(up.split(ranks), down.split(ranks), strict=True)
    return [factor for pair in parts if len(pair[0]) for factor in pair]


def _nearest(left: Tensor, matrix: Tensor) -> Tensor:
    """The `r n` whose product with `left` (`r o`) is nearest to the matrix (`o n`)."""
    left = left.double()
    gram = left @ left.T
    gram.diagonal().add_(1e-9 * gram.diagonal().mean().clamp_min(1e-300))
    return torch.linalg.solve(gram, left @ matrix.double()).float()


def _distance(matrix: Tensor, up: Tensor, down: Tensor, ranks: tuple[int, ...]) -> float:
    """Squared, after rounding."""
    return (_seen(up, ranks).T @ _seen(down, ranks) - matrix).square().sum().item()


def _seen(rows: Tensor, ranks: tuple[int, ...]) -> Tensor:
    """What a reader will have of the rows of a factor, the ones of most bits first."""
    parts = zip(rows.split(ranks), BITS, strict=True)
    return torch.cat([seen(part, bits) for part, bits in parts if len(part)])


def _apart(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the same product as `_components` gives them, so that rounding a weak component
    is no error of a strong one."""
    basis, rest = torch.linalg.qr(up.T.double())
    other_basis, other_rest = torch.linalg.qr(down.T.double())
    u, values, v = torch.linalg.svd(rest @ other_rest.T)
    return (basis @ u).T.float(), (values[:, None] * (v @ other_basis.T)).float()


# --- reading ----------------------------------------------------------------------------------


def read_forms(file: str, header: str) -> dict[str, Form]:
    """How each tensor is stored, from the text of `RANK_KEY`.

    Raises:
        MotionFileError: no compact file has such a text.
    """
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(base64.b64decode(header, validate=True), _MOST_TEXT)
        if not inflate.eof or inflate.unused_data:
            raise ValueError(f"it does not end within {_MOST_TEXT:,} bytes")
        return dict(_checked_forms(read_json(text)))
    except (AttributeError, TypeError, ValueError, zlib.error) as error:
        raise _damaged(file, f"'{RANK_KEY}' in its header: {str(error)[:100]}") from error


def _checked_forms(raw: dict[str, Any]) -> Iterator[tuple[str, Form]]:
    """Each value's type and range: a header comes from strangers."""
    for name, entry in raw.items():
        if type(entry) is not list or not entry:
            raise TypeError(f"{name[:100]} has something else than a list")
        kind, *shape = entry
        ranks = kind if type(kind) is list else []
        if any(type(number) is not int for number in [*ranks, *shape, 0 if ranks else kind]):
            raise TypeError(f"{name[:100]} has something else than whole numbers")
        if not 1 <= len(shape) <= 4 or min(shape) < 1 or math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(f"{name[:100]} has shape {shape[:8]}")
        if ranks:
            if len(ranks) != len(BITS) or min(ranks) < 0 or sum(ranks) > shape[0]:
                raise ValueError(f"{name[:100]} has ranks {ranks[:8]}")
            if len(shape) == 1 and not any(ranks):  # vectors are few, and tell how wide a site is
                raise ValueError(f"{name[:100]} is a vector of rank zero")
            yield name, Form(tuple(ranks), tuple(shape))
        elif kind in (*BITS, PLAIN):
            yield name, Form((), tuple(shape), kind)
        else:
            raise ValueError(f"{name[:100]} has {kind} bits")


def _damaged(file: str, reason: str) -> MotionFileError:
    return MotionFileError(f"The compact file {file} is damaged ({reason}): download it again.")
