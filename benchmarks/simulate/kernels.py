"""The kernels that a computation would start on a GPU, with their operations and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FLASH = "aten::_scaled_dot_product_flash_attention"
_ALLOCATIONS = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
)
_PRODUCTS = frozenset(("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"))
_MOTION_CONV = "lamp::motion_conv"
_CONVOLUTIONS = frozenset(("aten::convolution", "aten::convolution_backward"))


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    - ``name``: of the operation, such as `aten::addmm`;
    - ``operations``: floating-point operations of products; 0 for everything else;
    - ``bytes``: read and written;
    - ``shapes``: of its tensors, the inputs first.
    """

    name: str
    operations: int
    bytes: int
    shapes: tuple[tuple[int, ...], ...]

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product or a convolution."""
        return self.name.rstrip("_") in _PRODUCTS or self.is_convolution or self.is_fused

    @property
    def is_fused(self) -> bool:
        """Whether it is a product of this project's own kernels."""
        return self.name == _MOTION_CONV

    @property
    def is_convolution(self) -> bool:
        return self.name in _CONVOLUTIONS

    @property
    def is_flash_attention(self) -> bool:
        """Whether it is FlashAttention, forward or backward."""
        return self.name.startswith(FLASH)


class KernelList(TorchDispatchMode):
    """Lists the kernels of what runs on `meta` while the mode is on, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [t for t in _tensors(out) if t.is_meta]
        if results and not _is_free(func):
            inputs = (value for key, value in kwargs.items() if key != "out")
            given = [t for t in _tensors((*args, *inputs)) if t.is_meta]
            name = func._schema.name
            self.kernels.append(_kernel(name, given, results))
        return out


def _is_free(func: Any) -> bool:
    """Whether an operation starts no kernel: it makes a view or only allocates."""
    if func._schema.name in _ALLOCATIONS or func._schema.name == "aten::_unsafe_view":
        return True
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias and not alias.is_write for alias in aliases)


def _kernel(name: str, given: list[Tensor], results: list[Tensor]) -> Kernel:
    shapes = tuple(tuple(t.shape) for t in (*given, *results))
    moved = sum(map(_bytes, (*given, *results)))
    base = name.rstrip("_")
    operations = 0
    if base in _PRODUCTS:
        operations = 2 * results[0].numel() * given[-1].shape[-2]
    elif name == _MOTION_CONV:
        operations = 2 * results[0].numel() * len(given[1])  # zeros before frame 1 included
    elif name == "aten::convolution":
        operations = 2 * results[0].numel() * given[1][0].numel()
    elif name == "aten::convolution_backward":
        # As many products as there are gradients of input and weight.
        count = sum(t is not None and t.ndim > 1 for t in results)
        operations = count * 2 * given[0].numel() * given[2][0].numel()
    elif name.startswith(FLASH):
        backward = name.endswith("backward")
        q, k = given[1:3] if backward else given[:2]
        # Two products forward, five backward.
        operations = (10 if backward else 4) * math.prod(q.shape) * k.shape[2]
    return Kernel(name, operations, moved, shapes)


def _bytes(tensor: Tensor) -> int:
    """Bytes of memory under a view; expanded dimensions and overlapping windows count once."""
    sides = [(size, step) for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
    span = 1 + sum((size - 1) * step for size, step in sides)
    return min(math.prod(size for size, _ in sides), span) * tensor.element_size()


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
