"""How many bytes a computation holds, read off the life of every storage, without computing it.

The computation runs on PyTorch's `meta` device: real modules, real autograd, no memory. What
autograd keeps for the backward pass is therefore what it would keep on the real device. Three
things differ there and are put right: the casts of autocast, the kernel of
scaled-dot-product attention, and the scratch memory inside convolution and attention kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What autocast computes in the low precision, and on CUDA in fp32 (PyTorch's "autocast op
# reference"); everything else takes what it gets.
_LOW = frozenset(
    "linear conv1d conv2d conv3d matmul __matmul__ __rmatmul__ bmm baddbmm mm addmm einsum "
    "scaled_dot_product_attention".split()
)
_HIGH = {
    "cuda": frozenset("group_norm layer_norm softmax mse_loss exp pow".split()),
    "cpu": frozenset(["mse_loss"]),
}
_ALLOCATION = {"cuda": 512, "cpu": 1}  # the allocators' granularity, in bytes


class MemoryTrace(TorchDispatchMode):
    """Follows every storage that is born while the mode is on.

    Attributes:
        held: bytes alive now, gradients included, given storages not.
        gradients: bytes of it in gradients of learned parameters.
        peak, peak_gradients: `held` and `gradients` at the worst moment.

    Args:
        device: the device type to count for, `cuda` or `cpu`.
        given: tensors that are there before; they and their views are not counted.
    """

    def __init__(self, device: str, given: Iterable[Tensor]) -> None:
        super().__init__()
        self._device = device
        self._given = {tensor.untyped_storage()._cdata for tensor in given}
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._shapes = _ShapeMemory()
        self.held = self.gradients = self.peak = self.peak_gradients = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self._shapes(func, args, kwargs or {})
        for tensor in _tensors(out):
            if tensor.device.type == "meta":
                self._meet(tensor)
        scratch = _SCRATCH.get(func._schema.name)
        self._remember_peak(scratch(self._device, args, out) if scratch else 0)
        return out

    def watch_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count the gradients of `parameters` as such from the moment they are stored."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._store_gradient)

    def _store_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.gradients += self._size(parameter.grad)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._given or key in self._alive:
            return
        size = self._size(tensor)

        def gone(_: object) -> None:
            del self._alive[key]
            self.held -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.held += size

    def _size(self, tensor: Tensor) -> int:
        grain = _ALLOCATION[self._device]
        return -(-tensor.untyped_storage().nbytes() // grain) * grain

    def _remember_peak(self, scratch: int) -> None:
        if self.held + scratch > self.peak:
            self.peak, self.peak_gradients = self.held + scratch, self.gradients


class _ShapeMemory:
    """Calls operations on `meta`, and answers for itself where the same shapes came by before: a
    UNet repeats its blocks, and PyTorch thinks long about shapes."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func._schema.is_mutable:
            return func(*args, **kwargs)
        key = (func, _describe(args), _describe(tuple(kwargs.items())))
        if key in self._known:
            return _restore(self._known[key])
        out = func(*args, **kwargs)
        made, given = _tensors(out), _tensors((*args, *kwargs.values()))
        views = {t.untyped_storage()._cdata for t in made} & {
            t.untyped_storage()._cdata for t in given
        }
        if made and not views and all(t.device.type == "meta" for t in made):
            self._known[key] = _describe(out)
        return out


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in _tensors(value)]
    return []


def _describe(value: Any) -> Any:
    """Something hashable that is the same for all tensors alike."""
    if isinstance(value, Tensor):
        return (_Alike, value.shape, value.stride(), value.dtype, value.device)
    if isinstance(value, (list, tuple)):
        return tuple(_describe(part) for part in value)
    return (type(value), value)  # 1, 1.0 and True are equal


class _Alike:
    """Marks a description as that of a tensor."""


def _restore(description: Any) -> Any:
    if description and description[0] is _Alike:
        _, shape, stride, dtype, device = description
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)
    if description and isinstance(description[0], type):
        return description[1]
    return tuple(_restore(part) for part in description)


class DeviceRules(TorchFunctionMode):
    """Autocast and the choice of attention kernel of a device type, for tensors on `meta`.

    `fused`: whether the device has a kernel that never holds the matrix of all pairs.

    Leave `caching` on during the forward pass, as autocast keeps its copies of the learned
    parameters till its block ends; a recomputation in the backward pass ends after each block.
    """

    def __init__(self, device: str, precision: torch.dtype | None, fused: bool = True) -> None:
        super().__init__()
        self._device, self._precision, self._fused = device, precision, fused
        self._cache: dict[int, Tensor] = {}
        self._caching = True

    def end_forward(self) -> None:
        """What autocast does when its block ends."""
        self._caching = False
        self._cache.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self._precision is not None:
            args, kwargs = self._cast_arguments(name, args, kwargs)
        if name == "scaled_dot_product_attention":
            attend = _fused_attention if self._fused else _matrix_attention
            return attend(self._device, *args, **kwargs)
        return func(*args, **kwargs)

    def _cast_arguments(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if name in _LOW:
            target = self._precision
        elif name in _HIGH[self._device]:
            target = torch.float32
        else:
            return args, kwargs
        cast = [self._cast(value, target) for value in args]
        return cast, {key: self._cast(value, target) for key, value in kwargs.items()}

    def _cast(self, value: Any, target: torch.dtype | None) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == target:
            return value
        kept = value.requires_grad and value.is_leaf and value.dtype == torch.float32
        if not (kept and self._caching):
            return value.to(target)
        if id(value) not in self._cache:
            self._cache[id(value)] = value.to(target)
        return self._cache[id(value)]


def _fused_attention(device: str, q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> Any:
    """The kernel that the device takes for plain attention: each keeps q, k, v, its output and one
    number a query, never the matrix of all pairs."""
    if device == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    if q.dtype == torch.float32:
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _matrix_attention(device: str, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Any:
    """What PyTorch computes where no such kernel is: it keeps the matrix of all pairs."""
    scores = torch.ops.aten.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    return torch.ops.aten.matmul(scores.softmax(-1), v)


# --- memory that a kernel takes and gives back before it returns ---------------------------------


def _convolution(device: str, args: Any, out: Tensor) -> int:
    return _convolution_scratch(device, args[0], args[1], out)


def _convolution_backward(device: str, args: Any, out: Any) -> int:
    gradient, x, weight = args[:3]
    return _convolution_scratch(device, x, weight, gradient)


def _convolution_scratch(device: str, x: Tensor, weight: Tensor, y: Tensor) -> int:
    """cuDNN's and oneDNN's fast kernels work on a layout of their own: they copy all three. On a
    CPU 1 x 1 kernels need nothing."""
    if device == "cuda":
        return x.nbytes + weight.nbytes + y.nbytes
    if max(weight.shape[2:]) == 1:
        return 0
    return max(x.nbytes + weight.nbytes, y.nbytes)


def _flash_backward(device: str, args: Any, out: Any) -> int:
    """FlashAttention sums the gradient of q in fp32, tokens and channels padded."""
    q = args[1]
    tokens, channels = -(-q.shape[2] // 128) * 128, -(-q.shape[3] // 32) * 32
    return q.shape[0] * q.shape[1] * tokens * (channels + 1) * 4


_SCRATCH: dict[str, Callable[[str, Any, Any], int]] = {
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::_scaled_dot_product_flash_attention_backward": _flash_backward,
}
