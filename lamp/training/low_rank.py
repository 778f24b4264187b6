"""Training a motion as low-rank factors (`TrainConfig.rank`).

Each matrix `o n` of the motion is the product of `up` (`r o`) and `down` (`r n`), which are
trained. This keeps gradients, optimizer state and file small, unlike factoring a full matrix
after training (`lamp.motion_file.compress`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..method.motion import Motion
from ..motion_file.compress import Factors

_MARK = ".parametrizations."


class Product(nn.Module):
    """The product `o ...` of the factors `up` (`r o`) and `down` (`r ...`).

    Args:
        noise: whether a new tensor starts as noise rather than as zero.
        known: the initial factors, in place of those of a new tensor.
    """

    def __init__(
        self, rank: int, noise: bool, generator: torch.Generator, known: Factors | None = None
    ) -> None:
        super().__init__()
        self._rank, self._noise, self._generator = rank, noise, generator
        self._known = known

    def forward(self, up: Tensor, down: Tensor) -> Tensor:
        return product(up, down)

    def right_inverse(self, weight: Tensor) -> Factors:
        """Initial factors of a new tensor: their product is zero, or noise of the tensor's scale.

        `down` has the standard deviation 1/sqrt(r), so that a step of `up` changes the product
        about as much as a step of the full tensor would, and the same learning rates apply.
        """
        rows, rest = weight.shape[0], weight.shape[1:]
        if self._known is not None:
            (up, down), self._known = self._known, None
            return up.to(weight), down.to(weight)
        if weight.is_meta:
            return weight.new_empty(self._rank, rows), weight.new_empty(self._rank, *rest)
        down = torch.randn(self._rank, *rest, generator=self._generator) / self._rank**0.5
        up = torch.zeros(self._rank, rows)
        if self._noise:
            up = torch.randn(up.shape, generator=self._generator) * weight.std().item()
        return up.to(weight), down.to(weight)


def factored_tensors(motion: Motion, rank: int) -> dict[str, nn.Parameter]:
    """The matrices of a new motion that factors of `rank` make smaller, by canonical name. The
    others, such as the gates, are trained whole."""
    return {
        name: weight
        for name, weight in motion.trained_parameters().items()
        if weight.ndim > 1 and rank * (len(weight) + weight[0].numel()) < weight.numel()
    }


def factorise(
    motion: Motion, rank: int, seed: int, known: Mapping[str, Factors | None] | None = None
) -> None:
    """Replace the `factored_tensors` of a motion by factors, in place.

    Their parameters are then named `NAME.parametrizations.weight.original0` (up) and `original1`
    (down).

    Args:
        known: initial factors by name; all others are those of a new motion.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in factored_tensors(motion, rank):
        module, _, leaf = name.rpartition(".")
        # Queries, keys and values of temporal attention start as noise, all others as zero.
        noise = ".attn_temp." in name and ".to_out." not in name
        product = Product(rank, noise, generator, (known or {}).get(name))
        parametrize.register_parametrization(motion.get_submodule(module), leaf, product)


def product(up: Tensor, down: Tensor) -> Tensor:
    """The matrix `o ...` of its factors."""
    return (up.T @ down.flatten(1)).unflatten(1, down.shape[1:])


def factors(state: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Canonical name -> `up` and `down`, of each tensor of a motion's `state_dict` that was trained
    as factors."""
    return {
        name.replace(_MARK, ".").removesuffix(".original0"): (
            up,
            state[name.removesuffix("0") + "1"],
        )
        for name, up in state.items()
        if _MARK in name and name.endswith(".original0")
    }


def whole_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A motion's `state_dict` by canonical name, with factors multiplied."""
    whole = {name: tensor for name, tensor in state.items() if _MARK not in name}
    return whole | {name: product(*parts) for name, parts in factors(state).items()}
