"""Find the layer in which the values of a network become NaN or infinite."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def find_overflow(networks: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """Hook networks, given by name, while the block lasts. The list gets the first layer that turns
    finite values into NaN or infinite ones, as `NETWORK.LAYER`."""
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


def overflow_text(found: list[str], dtype: torch.dtype) -> str:
    """What the user is told, with the layers of `find_overflow`."""
    place = f"in {found[0]}" if found else "on the way to the MODEL"
    return (
        f"The video became NaN or infinite {place}, computed in {dtype}, and would be black. Lower "
        "cfg and the strength of the motion, or start ComfyUI with --force-fp32."
    )


def _is_finite(values: Any) -> bool:
    each = values if isinstance(values, tuple) else (values,)
    return all(bool(value.isfinite().all()) for value in each if isinstance(value, Tensor))
