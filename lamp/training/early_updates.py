"""Updates during the backward pass, which keep the gradients from being in memory all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LampError
from .recipe import TrainConfig

_EPS = 1e-6  # as in `clip_grad_norm_`


class EarlyUpdates:
    """Updates each parameter as soon as its gradient is complete, and frees the gradient.

    The norm of all gradients is not known then, so each gradient is clipped by the norm of those
    so far, its own included. Where nothing is clipped, the numbers are those of an update after
    the backward pass.

    Args:
        optimizer: one that updates each parameter on its own, such as AdamW.
        offload: keep its state in main memory between the updates.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        clip_norm: float,
        offload: bool,
    ) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._clip_norm, self._offload = clip_norm, offload
        self._norm = torch.zeros(())

    def backward(
        self, loss: Tensor, seen: Callable[[nn.Parameter], None], without_state: bool
    ) -> None:
        """The backward pass with all updates.

        Args:
            seen: called with each parameter while it has its gradient.
            without_state: move new state of the optimizer to main memory this time.
        """
        self._norm = loss.new_zeros(())
        update = partial(self._update, seen, self._offload or without_state)
        hooks = [p.register_post_accumulate_grad_hook(update) for p in self._parameters]
        try:
            loss.backward()
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _update(
        self, seen: Callable[[nn.Parameter], None], to_cpu: bool, parameter: nn.Parameter
    ) -> None:
        seen(parameter)
        gradient: Any = parameter.grad
        self._norm = self._norm.hypot(torch.linalg.vector_norm(gradient))
        gradient.mul_((self._clip_norm / (self._norm + _EPS)).clamp(max=1.0))
        _move(self._optimizer.state.get(parameter, {}), parameter, parameter.device)
        self._optimizer.step()  # only of this parameter, as no other one has a gradient
        if to_cpu:
            _move(self._optimizer.state[parameter], parameter, torch.device("cpu"))
        parameter.grad = None


def early_updates(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    config: TrainConfig,
    processes: int,
) -> EarlyUpdates | None:
    """The updates that `config` asks for; None for those after the backward pass.

    Raises:
        LampError: there are several processes, whose gradients have to be averaged first.
    """
    if config.update == "step":
        return None
    if processes > 1:
        raise LampError(
            f"update is {config.update} in {processes} processes, which average their gradients "
            "before an update: choose update step, or start one process."
        )
    return EarlyUpdates(optimizer, parameters, config.clip_norm, config.update == "offload")


def _move(state: dict[str, Any], parameter: Tensor, device: torch.device) -> None:
    """Move the tensors of the parameter's size; numbers stay where they are."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            state[name] = value.to(device)
