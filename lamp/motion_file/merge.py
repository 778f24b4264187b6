"""Merge two motions into one whose effect approximates the weighted sum of both.

The linear parts add up exactly: `conv1d`, the query delta and the output bias. Two parts do not
(docs/toy_results.md has the measured error):

- the gate of a motion convolution, sigmoid(conv_gate(y)), of which a site has one: the gates are
  averaged, weighted by |weight| x |conv1d| of each motion;
- the temporal attention, out v softmax(q k): its factors are not unique, because any invertible
  matrix can be inserted between out and v, and between q and k. So their products are summed, head
  by head, and the sum is factorised again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..errors import IncompatibleModelError, LampError, MotionFileError
from ..method.architecture import describe_family
from .config import MotionConfig
from .file import MotionFile
from .provenance import LICENSE_KEY, PARENTS_KEY
from .shapes import misfit, shapes_of

_HEAD_WIDTH = 64
_HEADS = 8
_TOY_HEADS = 2
# SHA-256 of the sorted names and shapes of a motion for the toy base.
_TOY_SHAPES = "6880d45e69b3e4aae4b69f0749a0cd3dfc327c72c3ca296f52ea2ff1d3fa5bdb"

Weights = tuple[float, float]
Pair = tuple[Tensor, Tensor]


def merge_motions(
    first: MotionFile,
    second: MotionFile,
    weights: Weights = (0.5, 0.5),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MotionFile:
    """One motion, in fp32, that combines two.

    A weight of 1 is the motion as trained. `merge(a, a, (x, y))` is exactly a at strength x + y,
    and `merge(a, b, (x, 0))` exactly a at strength x.

    Args:
        progress: called with (done, total) tensors; an exception from it cancels.

    Raises:
        IncompatibleModelError: the motions are for different models or groupnorm modes.
        MotionFileError: tensors differ in name or shape, or their sum overflows.
        LampError: both weights are 0.
    """
    if not any(weights):
        raise LampError("Both weights are 0: the result would be empty. Set one of them above 0.")
    _check(first, second)
    heads = _heads(first)
    merged = _Merge(first.state, second.state, weights)
    state: dict[str, Tensor] = {}
    for done, name in enumerate(first.state, start=1):
        if name not in state:
            state[name] = merged.tensor(name)
        if name.endswith(".attn_temp.to_q.weight"):
            block = name.removesuffix(".to_q.weight")
            state |= merged.attention(block, heads or len(state[name]) // _HEAD_WIDTH)
        progress(done, len(first.state))
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise MotionFileError(
                f"{first.name} and {second.name} cannot be merged: the sum of '{name}' "
                "overflows fp32. One of the files holds absurd values."
            )
    name = f"{first.name} + {second.name}"
    used = [(file, weight) for file, weight in zip((first, second), weights, strict=True) if weight]
    return MotionFile(state, _config([file for file, _ in used]), _metadata(used), name)


class _Merge:
    def __init__(
        self, first: Mapping[str, Tensor], second: Mapping[str, Tensor], weights: Weights
    ) -> None:
        self._states = (first, second)
        self._weights = weights

    def tensor(self, name: str) -> Tensor:
        """The weighted mean of a tensor; attention factors are replaced by `attention`."""
        weights = self._weights
        for part, measure in (
            (".conv_gate.", ".conv1d.weight"),
            (".norm_temp.", ".attn_temp.to_out.0.weight"),
        ):
            if part in name:
                weights = self._shares(name.partition(part)[0] + measure)
        return _sum(self._pair(name), weights)

    def attention(self, block: str, heads: int) -> dict[str, Tensor]:
        """The four matrices of one temporal attention."""
        q, k, v, out = (f"{block}.{part}.weight" for part in ("to_q", "to_k", "to_v", "to_out.0"))
        # Scores are not an amount of motion: the stronger motion at this block decides.
        scores = self._product(q, k, self._shares(out), heads)
        values = self._product(out, v, self._weights, heads, transposed=True)
        return scores | values

    def _product(
        self, left: str, right: str, weights: Weights, heads: int, transposed: bool = False
    ) -> dict[str, Tensor]:
        """Factors of sum_i weight_i left_i^T right_i, per head; `transposed`: `left` is `c h`."""
        lefts, rights = self._pair(left), self._pair(right)
        for i, other in ((0, 1), (1, 0)):
            if weights[other] == 0.0 or not lefts[other].any() or not rights[other].any():
                return {left: weights[i] * lefts[i] if transposed else lefts[i], right: rights[i]}
        if torch.equal(*rights):
            return {left: _sum(lefts, weights), right: rights[0]}
        if transposed:
            lefts = (lefts[0].T, lefts[1].T)
        parts = [
            _refactored(
                (lefts[0][rows], lefts[1][rows]), (rights[0][rows], rights[1][rows]), weights
            )
            for rows in torch.arange(len(rights[0])).chunk(heads)
        ]
        new_left, new_right = (torch.cat(each) for each in zip(*parts, strict=True))
        return {left: new_left.T.contiguous() if transposed else new_left, right: new_right}

    def _shares(self, measure: str) -> Weights:
        """The share of each motion, by its weight and the norm of its tensor `measure`."""
        sizes = [
            abs(weight) * tensor.double().norm().item()
            for weight, tensor in zip(self._weights, self._pair(measure), strict=True)
        ]
        if not any(sizes):
            sizes = [abs(weight) for weight in self._weights]
        return sizes[0] / sum(sizes), sizes[1] / sum(sizes)

    def _pair(self, name: str) -> Pair:
        one, other = (state[name].detach().float().cpu() for state in self._states)
        return one, other


def _sum(pair: Pair, weights: Weights) -> Tensor:
    return weights[0] * pair[0] + weights[1] * pair[1]


def _refactored(lefts: Pair, rights: Pair, weights: Weights) -> Pair:
    """The `d c` factors L, R whose L^T R is nearest to sum_i weight_i left_i^T right_i (`c c`)."""
    depth = len(rights[0])
    left = torch.cat([weights[0] * lefts[0], weights[1] * lefts[1]]).double()
    right = torch.cat(rights).double()
    # The SVD of the small matrix between both QR decompositions gives that of the product.
    left_basis, left_rest = torch.linalg.qr(left.T)
    right_basis, right_rest = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(left_rest @ right_rest.T)
    root = values[:depth].sqrt()[:, None]
    new_left = root * (left_basis @ u[:, :depth]).T
    new_right = root * (right_basis @ v[:depth].T).T
    return new_left.float(), new_right.float()


# --- checks and header ------------------------------------------------------------------------


def _check(first: MotionFile, second: MotionFile) -> None:
    a, b, names = first.config, second.config, f"{first.name} and {second.name}"
    if a.family != b.family:
        raise IncompatibleModelError(
            f"{names} cannot be merged: the first is for {describe_family(a.family)}, the second "
            f"for {describe_family(b.family)}. Merge motions of one family."
        )
    if a.groupnorm != b.groupnorm:
        raise IncompatibleModelError(
            f"{names} cannot be merged: the first was trained with groupnorm '{a.groupnorm}', the "
            f"second with '{b.groupnorm}'. Train one of them again."
        )
    problem = misfit(shapes_of(second.state), shapes_of(first.state))
    if problem is not None:
        raise MotionFileError(
            f"{names} cannot be merged: in the second, {problem}. They were trained on models of "
            "different shapes, or one of them is damaged."
        )


def _heads(motion: MotionFile) -> int | None:
    """The number of attention heads; None if a head always has 64 channels.

    The tensors do not show it. SD 1.x has 8 heads everywhere; SD 2.x and SD-XL have heads of 64
    channels. A text width is no model's own, so the toy base is recognised by all its shapes.
    """
    family = motion.config.family
    heads: dict[str, int | None] = {"sd1": _HEADS, "sd2": None, "sdxl": None}
    if family in heads:
        return heads[family]
    shapes = sorted(shapes_of(motion.state).items())
    if hashlib.sha256(repr(shapes).encode()).hexdigest() == _TOY_SHAPES:
        return _TOY_HEADS
    raise IncompatibleModelError(
        f"Motions for {describe_family(family)} cannot be merged, because its number of attention "
        "heads is unknown. Supported are SD 1.x, SD 2.x, SD-XL and the toy base."
    )


def _config(files: Sequence[MotionFile]) -> MotionConfig:
    """Size, frame count, rate and base where all agree; the words and captions of all; no training.

    Args:
        files: the motions with a weight, one or two.
    """
    configs = [file.config for file in files]
    first = configs[0]
    agreed: dict[str, Any] = {
        name: getattr(first, name)
        for name in ("frames", "width", "height", "fps")
        if all(getattr(other, name) == getattr(first, name) for other in configs)
    }
    if all((c.base_hash, c.base_model) == (first.base_hash, first.base_model) for c in configs):
        agreed |= {"base_hash": first.base_hash, "base_model": first.base_model}
    if all(c.importance.keys() == first.importance.keys() for c in configs):
        agreed["importance"] = {
            name: fmean(c.importance[name] for c in configs) for name in first.importance
        }
    return MotionConfig(
        first.family,
        groupnorm=first.groupnorm,
        prompt=_joined([c.trigger for c in configs], ", "),
        captions=[caption for c in configs for caption in c.captions],
        **agreed,
    )


def _metadata(used: Sequence[tuple[MotionFile, float]]) -> dict[str, str]:
    parents = [
        {"name": file.name, "weight": weight, "prompt": file.config.prompt} for file, weight in used
    ]
    licenses = [file.metadata.get(LICENSE_KEY, "") for file, _ in used]
    metadata = {
        PARENTS_KEY: json.dumps(parents, ensure_ascii=False),
        LICENSE_KEY: _joined(licenses, " and "),
    }
    return {key: text for key, text in metadata.items() if text}


def _joined(texts: list[str], between: str) -> str:
    return between.join(dict.fromkeys(text for text in texts if text))
