"""How many bytes a computation holds, without computing it.

It runs on PyTorch's `meta` device: real modules and real autograd on tensors without memory, so
that autograd keeps what it would keep on the real device. `MemoryTrace` counts bytes by the
lifetimes of storages. `DeviceRules` supplies what `meta` lacks: the device's attention kernels.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .allocator import GRAIN, Event

_GRANULARITY = {"cuda": GRAIN, "cpu": 1}  # of the allocators, in bytes


class MemoryTrace(TorchDispatchMode):
    """Counts the bytes of every storage created while the mode is on.

    ``held``: bytes alive now; ``peak``: at the worst moment, scratch memory of kernels included;
    ``events``: all allocations and releases in order, as the device's allocator sees them.

    Args:
        device: device type to count for, `cuda` or `cpu`.
        given: existing tensors; they and their views are not counted.
    """

    def __init__(self, device: str, given: Iterable[Tensor]) -> None:
        super().__init__()
        self._device = device
        self._known = {tensor.untyped_storage()._cdata for tensor in given}
        self._freed: dict[int, weakref.ref[Any]] = {}
        self._numbers = itertools.count()
        self.held = self.peak = 0
        self.events: list[Event] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._count(tensor)
        scratch = _scratch(self._device, func._schema.name, args, out)
        if scratch:
            number = next(self._numbers)
            self.events += [(number, scratch), (number, 0)]
        self.peak = max(self.peak, self.held + scratch)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, grain = storage._cdata, _GRANULARITY[self._device]
        size = -(-storage.nbytes() // grain) * grain
        if key in self._known or not size:
            return
        number = next(self._numbers)

        def freed(_: object) -> None:
            self._known.remove(key)
            del self._freed[key]
            self.held -= size
            self.events.append((number, 0))

        self._known.add(key)
        self._freed[key] = weakref.ref(storage, freed)
        self.held += size
        self.events.append((number, size))


class DeviceRules(TorchFunctionMode):
    """The attention kernel of a device type, for tensors on `meta`.

    Args:
        fused: whether the device has an attention kernel that never holds the attention matrix.
    """

    def __init__(self, device: str, fused: bool = True) -> None:
        super().__init__()
        self._device, self._fused = device, fused

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            return self._attention(*args[:3])
        return func(*args, **kwargs or {})

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The device's kernel. Fused ones keep q, k, v, the output and one number per query."""
        aten = torch.ops.aten
        if not self._fused:
            scores = aten.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
            return aten.matmul(scores.softmax(-1), v)
        if self._device == "cpu":
            return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
        if q.dtype == torch.float32:
            return aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
        return aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _scratch(device: str, name: str, args: Any, out: Any) -> int:
    """Bytes that a kernel allocates and frees before it returns."""
    if name == "aten::_scaled_dot_product_flash_attention_backward":
        # FlashAttention sums the gradient of q in fp32, tokens and channels padded.
        batch, heads, tokens, channels = args[1].shape
        tokens, channels = -(-tokens // 128) * 128, -(-channels // 32) * 32
        return batch * heads * tokens * (channels + 1) * 4
    if name == "aten::convolution":
        x, weight, y = args[0], args[1], out
    elif name == "aten::convolution_backward":
        y, x, weight = args[:3]
    else:
        return 0
    # cuDNN's and oneDNN's fast kernels copy input, weight and output to their own layout. 1 x 1
    # kernels on the CPU need no copies.
    if device == "cuda":
        return x.nbytes + weight.nbytes + y.nbytes
    return 0 if max(weight.shape[2:]) == 1 else max(x.nbytes + weight.nbytes, y.nbytes)
