"""Copies of modules with other tensors, for using a model in another form without changing it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Change = Callable[[Tensor, nn.Module, str], Tensor]
"""(tensor, its module, its name) -> the tensor of the copy."""


def twin(
    module: nn.Module, change: Change, leave_out: Callable[[str], bool] = lambda name: False
) -> Any:
    """A frozen copy of a module, its parameters and buffers replaced by `change`. Tensors shared
    between modules are shared in the copy.

    Args:
        leave_out: names of module attributes that are not copied. Omitted hooks become empty. A
            `forward` of the instance, which is bound to it, is never copied.
    """
    made: dict[int, Tensor] = {}

    def tensor(value: Tensor | None, owner: nn.Module, name: str) -> Tensor | None:
        if value is None:
            return None
        if id(value) not in made:
            changed = change(value, owner, name)
            is_parameter = isinstance(value, nn.Parameter)
            made[id(value)] = nn.Parameter(changed, False) if is_parameter else changed
        return made[id(value)]

    def copy(source: nn.Module) -> nn.Module:
        double = source.__class__.__new__(source.__class__)
        double.__dict__ = {
            name: value
            for name, value in source.__dict__.items()
            if name != "forward" and (name.endswith("_hooks") or not leave_out(name))
        }
        for name in [name for name in double.__dict__ if name.endswith("_hooks")]:
            own = double.__dict__[name]
            double.__dict__[name] = OrderedDict() if leave_out(name) else own.copy()
        for kind in ("_parameters", "_buffers"):
            held = getattr(source, kind).items()
            double.__dict__[kind] = {name: tensor(value, source, name) for name, value in held}
        children = source._modules.items()
        double.__dict__["_modules"] = {name: child and copy(child) for name, child in children}
        return double

    return copy(module)
