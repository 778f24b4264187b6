"""Muon (Jordan et al. 2024): steps of matrices that are equally large in all directions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MATRIX_RATE = 4.0
"""Spectral norm of a matrix's step, relative to the learning rate. A bound on the spectral norm
suits every width (Yang et al. 2023, "A spectral condition for feature learning")."""

_MOMENTUM = 0.95
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the published quintic iteration


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon steps it as a matrix: `o n`, or a convolution `o n k` with several outputs."""
    return parameter.ndim > 1 and parameter.shape[0] > 1


class Muon(torch.optim.AdamW):
    """Muon for the groups with `matrices`, AdamW for the others, in one optimizer.

    A matrix has one state tensor, half of AdamW's. Each parameter is updated on its own.

    Args:
        params: groups of parameters, in which `matrices` tells whether Muon steps them.
        weight_decay: as for AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient. The gradients of matrices are freed."""
        for group in self.param_groups:
            if not group["matrices"]:
                continue
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rate, decay = float(group["lr"]), group["weight_decay"]
                    self._step_matrix(parameter, parameter.grad, rate, decay)
                    parameter.grad = None  # AdamW skips it
        return super().step(closure)

    def _step_matrix(self, parameter: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = gradient.lerp(state["momentum"], _MOMENTUM)  # Nesterov's
        change = orthogonalise(ahead.flatten(1)).view_as(parameter)
        parameter.mul_(1 - rate * decay).add_(change, alpha=-rate * MATRIX_RATE)


def orthogonalise(matrix: Tensor) -> Tensor:
    """About U V^T of a matrix U S V^T: every singular value becomes roughly 1 (0.7 to 1.2).

    By Newton-Schulz iterations, in bf16 on GPUs that compute fast in it.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.t()
    x = wide / (wide.norm() + 1e-7)
    if x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 8:
        x = x.bfloat16()
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        squares = x @ x.t()
        x = torch.addmm(x, torch.addmm(squares, squares, squares, beta=b, alpha=c), x, beta=a)
    x = x.to(matrix.dtype)
    return x if wide is matrix else x.t()
