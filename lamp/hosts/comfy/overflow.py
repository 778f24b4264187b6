"""Where a network's numbers stop being numbers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def find_overflow(networks: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Watch networks, by name, at work: the list gets the first layer that makes NaN or infinite
    values of finite ones, as `NETWORK.LAYER`. The hooks go when the block ends."""
    found: list[str] = []

    def see(name: str, _: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        if not found and _is_finite(given) and not _is_finite(out):
            found.append(name)

    with ExitStack() as stack:
        for network, root in networks.items():
            for name, module in root.named_modules(prefix=network):
                hook = functools.partial(see, name)
                stack.callback(module.register_forward_hook(hook).remove)
        yield found


def _is_finite(values: Any) -> bool:
    each = values if isinstance(values, tuple) else (values,)
    return all(bool(value.isfinite().all()) for value in each if isinstance(value, Tensor))
