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


class Hooks(ExitStack):
    """Hooks and replaced functions of layers, which are removed when it closes."""

    def __init__(self) -> None:
        super().__init__()
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        self.left: list[Callable[[], object]] = []
        """After closing: restores functions that other code hid then, and may have put back."""

    @property
    def intact(self) -> bool:
        """Whether no other code has replaced a `forward` since, as a host does when it switches
        between patches."""
        return all(vars(module).get("forward") is own for module, own in self._forwards)

    def wrap_forward(
        self, module: nn.Module, make: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
    ) -> None:
        """Replace `module.forward` by `make(module.forward)`."""
        before = vars(module).get("forward")  # such as that of accelerate's hooks
        own = make(module.forward)

        def restore() -> bool:
            if vars(module).get("forward") is not own:
                return False
            del module.forward
            if before is not None:
                module.forward = before
            return True

        def close() -> None:
            if not restore():
                self.left.append(restore)

        module.forward = own
        self._forwards.append((module, own))
        self.callback(close)
