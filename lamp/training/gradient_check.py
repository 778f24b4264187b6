"""Checks that a gradient reaches every trained parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import LampError

# Zero-initialised layers in sequence make some gradients exactly zero at first: for one layer in
# step 1, for two low-rank factors in the next steps too.
PATIENCE = 10


class GradientCheck:
    """Watches the first gradients of a run.

    A parameter that the loss does not depend on, such as behind a kernel without a backward pass,
    has no gradient and is refused at once; one whose gradient stays zero, after `PATIENCE` steps,
    unless it is a gate that is fully open.

    Args:
        learned: parameters by name, without those with learning rate 0: parameters behind such a
            layer of zeros get no gradient.
    """

    def __init__(self, learned: dict[str, nn.Parameter]) -> None:
        self._learned = frozenset(learned)
        self._waiting = dict(learned)
        self._reached: dict[int, Tensor] = {}
        self._steps = 0

    @property
    def waits(self) -> bool:
        """Whether some parameter has had no gradient yet."""
        return bool(self._waiting)

    def note(self, parameter: nn.Parameter) -> None:
        """Look at the gradient of a parameter. Needed if it is freed before `check`."""
        if self.waits and parameter.grad is not None:
            self._reached[id(parameter)] = parameter.grad.any()

    def check(self, scale: float = 1.0) -> None:
        """Check the gradients of a step.

        Args:
            scale: of the loss; a step whose scaled gradients overflow is skipped and not counted.

        Raises:
            LampError: a parameter gets no gradient.
        """
        if not self.waits:
            return
        for parameter in self._waiting.values():
            self.note(parameter)
        reached, self._reached = self._reached, {}
        _refuse(name for name, p in self._waiting.items() if id(p) not in reached)
        if scale != 1.0 and not _all_finite(self._waiting.values()):
            return
        self._steps += 1
        flags = torch.stack([reached[id(p)] for p in self._waiting.values()]).tolist()
        self._waiting = {
            name: parameter
            for (name, parameter), flag in zip(self._waiting.items(), flags, strict=True)
            if not flag
        }
        if self._steps >= PATIENCE:
            _refuse(name for name in self._waiting if scale != 1.0 or not self._is_open_gate(name))
            self._waiting = {}

    def _is_open_gate(self, name: str) -> bool:
        """Whether this is the gate of a convolution that a gradient has reached.

        A sigmoid that a longer training drove to exactly 1 has a gradient of exactly 0 (in fp32
        from about 17 on, in bf16 from 6): nothing is wrong with such a gate.
        """
        site, gate, _ = name.partition(".conv_gate.")
        convolution = f"{site}.conv1d."
        return bool(gate) and any(
            other.startswith(convolution) and other not in self._waiting for other in self._learned
        )


def _all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    return all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)


def _refuse(names: Iterable[str]) -> None:
    names = list(names)
    if not names:
        return
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise LampError(
        f"No gradient reaches '{names[0]}'{others}, so it would not be trained. A layer of the "
        "model has no backward pass (a quantized layer, for example), or precision fp16 rounds the "
        "gradient to zero: use another checkpoint, choose another precision, or start ComfyUI "
        "without --fast."
    )
