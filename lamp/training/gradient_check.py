"""Does a gradient reach everything that is to be learned? If not, a run says so."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..errors import LampError

# Zero-initialised layers stand behind each other, so that some gradients are exactly zero at
# first: behind one such layer in step 1, behind two factors of it in the next ones.
PATIENCE = 10


class GradientCheck:
    """Watches the first gradients of a run.

    A tensor that the loss does not depend on has none at all (a kernel without a backward pass, for
    one), which is told at once; one whose gradient stays zero is told after `PATIENCE` steps.

    Args:
        learned: by name, without those whose learning rate is 0: what stands behind such a
            layer of zeros gets no gradient, and need not.
    """

    def __init__(self, learned: dict[str, nn.Parameter]) -> None:
        self._waiting = dict(learned)
        self._steps = 0

    @property
    def waits(self) -> bool:
        """Whether a tensor has not had its gradient yet."""
        return bool(self._waiting)

    def check(self, scale: float = 1.0) -> None:
        """Look at the gradients of a step.

        Args:
            scale: of the loss; a step whose scaled gradients overflow is skipped, and no step.

        Raises:
            LampError: a tensor gets no gradient.
        """
        if not self.waits:
            return
        _refuse(name for name, p in self._waiting.items() if p.grad is None)
        if scale != 1.0 and not _all_finite(self._waiting.values()):
            return
        self._steps += 1
        reached = torch.stack([p.grad.any() for p in self._waiting.values() if p.grad is not None])
        self._waiting = {
            name: parameter
            for (name, parameter), is_reached in zip(
                self._waiting.items(), reached.tolist(), strict=True
            )
            if not is_reached
        }
        if self._steps >= PATIENCE:
            _refuse(self._waiting)


def _all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    return all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)


def _refuse(names: Iterable[str]) -> None:
    names = list(names)
    if not names:
        return
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise LampError(
        f"No gradient reaches '{names[0]}'{others}: it would not be learned. Something in the "
        "image model has no backward pass, such as a quantised layer, or precision fp16 rounds "
        "the gradient to zero: use another checkpoint file, choose another precision, or start "
        "ComfyUI without --fast."
    )
