"""A motion learned as low-rank factors from its first step on (`TrainConfig.rank`).

Each matrix `o n` of a motion is then the product of `up` (`r o`) and `down` (`r n`), and these are
what is learned: so are gradients, optimiser state and file small, which a matrix learned as a whole
and taken apart afterwards (`lamp.motion_file.compress`) has no reason to be.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..method.motion import Motion
from ..motion_file.compress import Factors

_MARK = ".parametrizations."


class Product(nn.Module):
    """The tensor `o ...` that `up` (`r o`) and `down` (`r ...`) are the factors of."""

    def __init__(self, rank: int, noise: bool, generator: torch.Generator) -> None:
        super().__init__()
        self._rank, self._noise, self._generator = rank, noise, generator

    def forward(self, up: Tensor, down: Tensor) -> Tensor:
        return (up.T @ down.flatten(1)).unflatten(1, down.shape[1:])

    def right_inverse(self, weight: Tensor) -> Factors:
        """Where the factors of a fresh tensor begin: as nothing, or as noise of its own size.

        `down` has the standard deviation 1/sqrt(r): a step of `up` then changes the product about
        as much as a step of the whole tensor would, and the same learning rates serve both.
        """
        rows, rest = weight.shape[0], weight.shape[1:]
        if weight.is_meta:
            return weight.new_empty(self._rank, rows), weight.new_empty(self._rank, *rest)
        down = torch.randn(self._rank, *rest, generator=self._generator) / self._rank**0.5
        up = torch.zeros(self._rank, rows)
        if self._noise:
            up = torch.randn(up.shape, generator=self._generator) * weight.std().item()
        return up.to(weight), down.to(weight)


def factorise(motion: Motion, rank: int, seed: int) -> None:
    """Let a fresh motion be learned as factors of `rank`, in place.

    What is not smaller in factors, such as the gates, stays as it is. The parameters of the others
    are then called `NAME.parametrizations.weight.original0` (up) and `original1` (down).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in list(motion.trained_parameters().items()):
        if weight.ndim < 2 or rank * (len(weight) + weight[0].numel()) >= weight.numel():
            continue
        module, _, leaf = name.rpartition(".")
        # Queries, keys and values over the frames begin as noise, everything else as nothing.
        noise = ".attn_temp." in name and ".to_out." not in name
        product = Product(rank, noise, generator)
        parametrize.register_parametrization(motion.get_submodule(module), leaf, product)


def factors(motion: Motion) -> dict[str, Factors]:
    """`up` and `down` of each tensor that is learned as factors, by its canonical name."""
    state = motion.state_dict()
    return {
        name.replace(_MARK, ".").removesuffix(".original0"): (
            up,
            state[name.removesuffix("0") + "1"],
        )
        for name, up in state.items()
        if _MARK in name and name.endswith(".original0")
    }


def whole_state(motion: Motion) -> dict[str, Tensor]:
    """The motion's tensors by canonical name, factors multiplied."""
    state = {name: tensor for name, tensor in motion.state_dict().items() if _MARK not in name}
    for name in factors(motion):
        module, _, leaf = name.rpartition(".")
        state[name] = getattr(motion.get_submodule(module), leaf).detach()
    return state
