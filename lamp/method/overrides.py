"""Replace one function of PyTorch inside a host's layer, which keeps its casts and patches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Replaced(TorchFunctionMode):
    """While the block lasts, the first call of `function` is answered by `answer`.

    An answer of NotImplemented leaves the call to PyTorch. `answered` is then False, as it is if
    the layer computes in another way.
    """

    def __init__(self, function: Callable[..., Any], answer: Callable[..., Any]) -> None:
        super().__init__()
        self._function, self._answer = function, answer
        self.answered = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is self._function and not self.answered:
            out = self._answer(*args, **(kwargs or {}))
            if out is not NotImplemented:
                self.answered = True
                return out
        return func(*args, **(kwargs or {}))


def wrap_forward(
    module: nn.Module,
    make: Callable[[Callable[..., Tensor]], Callable[..., Tensor]],
    stack: ExitStack,
) -> None:
    """Replace `module.forward` by `make(module.forward)` until `stack` closes."""
    before = vars(module).get("forward")  # such as that of accelerate's hooks

    def restore() -> None:
        vars(module).pop("forward", None)
        if before is not None:
            module.forward = before

    module.forward = make(module.forward)
    stack.callback(restore)
