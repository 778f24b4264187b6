"""Compress a motion to a given size: low-rank factors, quantized to few bits.

The best rank-r approximation of a matrix keeps its r largest singular values (Eckart and Young
1936). Strong components are quantized to more bits than weak ones. A matrix without a low rank,
such as the temporal attention's queries and keys, which start as noise, is quantized row by row
instead.

One Lagrange multiplier, the cost of a byte, shares the bytes out among all tensors: each component
takes the bits that minimise its error plus the cost of its bytes (Everett 1963). The error of a
tensor is its squared error, weighted by how strongly the prediction depends on it, as measured in
training (`MotionConfig.importance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import LampError
from .encoding import BITS, PLAIN, Encoding, encode, quantization_error, row_bytes

SIZE = 0.085
"""Default size of a compact file, as a share of the full one."""
# Chosen by the videos of toy motions. Importance underrates gates: their error is the same at every
# step, so it adds up.
_GATE = 10.0
# Where importance is unknown: temporal queries, keys and values start as noise and mostly stay so.
_NOISE = {".attn_temp.to_q.": 0.2, ".attn_temp.to_k.": 0.2, ".attn_temp.to_v.": 0.5}
# The multiplier is searched from 2^-80 of the largest error up, in so many bisections.
_LOWEST, _BISECTIONS = -80.0, 30

Factors = tuple[Tensor, Tensor]
"""`up` (`r o`) and `down` (`r ...`) of a tensor `o ...` = up^T down."""


def check_size(size: float) -> None:
    """Raise LampError unless 0 < size <= 1."""
    if not 0.0 < size <= 1.0:
        raise LampError(
            f"size is {size:g}. It is the compact file's share of the full one: set it above 0 and "
            f"at most 1 (default {SIZE:g})."
        )


def compress(
    state: Mapping[str, Tensor],
    size: float,
    importance: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, str]:
    """The bytes (uint8) that replace all tensors, and the text of `RANK_KEY`.

    Args:
        size: upper limit, as a share of the tensors' bytes in fp16.
        importance: see `MotionConfig`. Where it is missing or incomplete, a guess by the kind of
            tensor takes its place.
        progress: called with (done, total); an exception from it cancels.

    Raises:
        LampError: the size is too small even for norms and biases.
    """
    weights = _weights(state, importance or {})
    choices: list[_Choice] = []
    for name, tensor in state.items():
        choices.append(_Choice.of(_matrix(tensor), tensor, weights.get(name, 0.0)))
        progress(len(choices), 2 * len(state))
    encodings = _fitting(choices, size * 2 * sum(tensor.numel() for tensor in state.values()))
    # Decomposed a second time: keeping all components would take more memory than the motion.
    found: dict[str, tuple[Encoding, list[Tensor]]] = {}
    for (name, tensor), encoding in zip(state.items(), encodings, strict=True):
        matrix = _matrix(tensor)
        parts = [matrix] if encoding.bits else _split(*_components(matrix), encoding.ranks)
        found[name] = (encoding, parts)
        progress(len(choices) + len(found), 2 * len(state))
    return encode(found)


def compress_factors(factors: Mapping[str, Factors]) -> tuple[Tensor, str]:
    """As `compress`, for tensors that were trained as factors: 8 bits, all components kept."""
    found = {}
    for name, (up, down) in factors.items():
        pair = _orthogonal(up.detach().float().cpu(), _matrix(down))
        ranks = (len(up), *[0] * (len(BITS) - 1))
        found[name] = (Encoding(ranks, (up.shape[1], *down.shape[1:])), list(pair))
    return encode(found)


# --- where the bytes go ---------------------------------------------------------------------------


def _weights(state: Mapping[str, Tensor], importance: Mapping[str, float]) -> dict[str, float]:
    """The weight of a squared error in each matrix, in units of the matrix's mean square.

    It is the fourth root of importance x mean square. That product estimates the loss without the
    matrix, for small changes; the root corrects for large ones, where the extremes come closer.
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
class _Choice:
    """The weighted error of one tensor in each possible encoding.

    - ``components``: of each component in 8, 4, 3 and 2 bits, and left out: `5 r`;
    - ``rows``: of the matrix itself, by bits.
    """

    shape: tuple[int, ...]
    components: Tensor
    rows: dict[int, float]

    @classmethod
    def of(cls, matrix: Tensor, tensor: Tensor, weight: float) -> _Choice:
        shape = tuple(tensor.shape)
        plain = {PLAIN: 0.0} if tensor.half().isfinite().all() else {}
        rows = {bits: quantization_error(matrix, bits).sum().item() for bits in BITS}
        if tensor.ndim == 1:  # norms and biases are small: kept in fp16
            return cls(shape, torch.zeros(len(BITS) + 1, 0), plain or rows)
        up, down = _components(matrix)
        energy = down.square().sum(1).double()
        errors = [
            quantization_error(up, bits) * energy + quantization_error(down, bits) for bits in BITS
        ]
        rows = {bits: weight * error for bits, error in rows.items()}
        return cls(shape, weight * torch.stack([*errors, energy]), rows | plain)

    @property
    def largest(self) -> float:
        return self.components.max().item() if self.components.numel() else 0.0

    def cheapest(self, multiplier: float) -> Encoding:
        """The encoding with the least sum of error and multiplier x bytes."""
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        found = []
        for bits, error in self.rows.items():
            encoding = Encoding((), self.shape, bits)
            found.append((error + multiplier * encoding.bytes, encoding))
        if self.components.numel():
            sizes = [row_bytes(rows, bits) + row_bytes(columns, bits) for bits in BITS]
            costs = torch.tensor([*sizes, 0.0], dtype=torch.float64)[:, None]
            least, kinds = (self.components + multiplier * costs).min(0)
            ranks = tuple(int((kinds == kind).sum()) for kind in range(len(BITS)))
            found.append((least.sum().item(), Encoding(ranks, self.shape)))
        return min(found, key=lambda pair: pair[0])[1]


def _fitting(choices: Sequence[_Choice], budget: float) -> list[Encoding]:
    """The encodings at the smallest multiplier with which all fit into the budget (bytes)."""
    largest = max((choice.largest for choice in choices), default=0.0) or 1.0
    best = [choice.cheapest(largest) for choice in choices]
    least = sum(encoding.bytes for encoding in best)
    if least > budget:
        raise LampError(
            f"The size is too small: it allows {budget:,.0f} bytes, norms and biases alone take "
            f"{least:,}. Choose a larger size (default {SIZE:g})."
        )
    low, high = _LOWEST, 0.0  # log2 of the multiplier, in units of the largest error
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        encodings = [choice.cheapest(largest * 2.0**middle) for choice in choices]
        if sum(encoding.bytes for encoding in encodings) > budget:
            low = middle
        else:
            high, best = middle, encodings
    return best


# --- factors --------------------------------------------------------------------------------------


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().reshape(len(tensor), -1)


def _components(matrix: Tensor) -> Factors:
    """M = sum_k up_k down_k^T, strongest first: `up` orthonormal rows `r o`, `down` `r n`.

    r is the smaller of o and n, so that a long thin tensor takes no more memory than its numbers.

    From the eigenvectors of M M^T in double precision: much faster than an SVD at `1280 3840`, and
    its error lies in the components that are cut off.
    """
    if len(matrix) > matrix.shape[1]:
        down, up = _components(matrix.T)
        scale = up.norm(dim=1, keepdim=True)
        return up / scale.clamp_min(torch.finfo(scale.dtype).tiny), down * scale
    exact = matrix.double()
    _, vectors = torch.linalg.eigh(exact @ exact.T)
    up = vectors.flip(1).T
    return up.float(), (up @ exact).float()


def _split(up: Tensor, down: Tensor, ranks: tuple[int, ...]) -> list[Tensor]:
    """`up` and `down` of each number of bits, in the order of the bytes."""
    kept = sum(ranks)
    pairs = zip(up[:kept].split(ranks), down[:kept].split(ranks), strict=True)
    return [factor for pair in pairs if len(pair[0]) for factor in pair]


def _orthogonal(up: Tensor, down: Tensor) -> Factors:
    """Factors of the same product in the form of `_components`, so that quantizing a weak component
    puts no error into a strong one."""
    basis, rest = torch.linalg.qr(up.T.double())
    other_basis, other_rest = torch.linalg.qr(down.T.double())
    u, values, v = torch.linalg.svd(rest @ other_rest.T)
    return (basis @ u).T.float(), (values[:, None] * (v @ other_basis.T)).float()
