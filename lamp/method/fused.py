"""Fused kernels for sampling on a GPU, where Triton is installed (CUDA and ROCm).

Before their first use the kernels are compared with PyTorch's operations on the same device. If
they cannot run or differ, a message says so once and the layers use PyTorch's operations.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import is_out_of_memory
from ..plain import log

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_FRAMES = 64  # of `frame_attention`
# Relative to the largest value; the kernels round once, PyTorch's operations several times.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}

_broken: set[tuple[str, torch.dtype]] = set()
_kinds = frozenset(("cuda",))


@contextmanager
def only_on(*kinds: str) -> Iterator[None]:
    """Use the kernels on these kinds of devices while the block lasts: on none, to compare with
    PyTorch's operations, or on `meta`, to simulate a GPU."""
    global _kinds
    before, _kinds = _kinds, frozenset(kinds)
    try:
        yield
    finally:
        _kinds = before


def ready(x: Tensor) -> bool:
    """Whether the fused kernels can be used on `x`: they have no gradient, and torch.compile fuses
    PyTorch's operations by itself."""
    return (
        x.device.type in _kinds
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.dtype in _DTYPES
        and not torch.is_autocast_enabled("cuda")
        and _works(str(x.device), x.dtype)
        and (str(x.device), x.dtype) not in _broken
    )


def multiplies_fast(x: Tensor) -> bool:
    """Whether Triton's own matrix products are about as fast as PyTorch's: in half precision on
    tensor cores that it supports (Ampere and newer, and the matrix cores of AMD)."""
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
        return False
    return x.dtype in (torch.float16, torch.bfloat16)


def attempt(run: str | Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor | None:
    """`run(x, *args)` with the fused kernels, or None where they cannot be used.

    Args:
        run: a function, or the name of an operation.
    """
    if not ready(x):
        return None
    try:
        return (operation(run) if isinstance(run, str) else run)(x, *args)
    except Exception as error:  # compilers fail in many ways
        if is_out_of_memory(error):
            raise
        _give_up(x, error)
        return None


def _give_up(x: Tensor, reason: object) -> None:
    _broken.add((str(x.device), x.dtype))
    log.warning(
        "fused kernels are off for %s on %s, PyTorch's operations are used: %s",
        x.dtype, x.device, str(reason).strip().splitlines()[0] if str(reason) else repr(reason),
    )  # fmt: skip


@functools.cache
def _works(device: str, dtype: torch.dtype) -> bool:
    """Whether Triton is installed and its kernels agree with PyTorch on this device."""
    if device == "meta":
        return True  # nothing runs there
    if importlib.util.find_spec("triton") is None:
        return False
    like = torch.empty((), device=device, dtype=dtype)
    try:
        with torch.random.fork_rng([like.device]):
            worst = max(differences(device, dtype).items(), key=lambda item: item[1])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _give_up(like, error)
        return False
    if not worst[1] <= _TOLERANCE[dtype]:
        _give_up(like, f"{worst[0]} differs by {worst[1]:.1e}")
        return False
    return True


def differences(device: str, dtype: torch.dtype) -> dict[str, float]:
    """The largest difference between each kernel and its formula, relative to the largest value, on
    small random tensors. The formula is in fp64, because a GPU may compute fp32 in TF32."""
    from . import kernels

    videos, frames, channels, height, width, groups = 2, 3, 80, 6, 12, 4

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    y, onto = (draw(videos * frames, channels, height, width) for _ in range(2))
    weight, bias = draw(1, channels, 3, 3) * 0.1, draw(1)
    factor = torch.rand((len(y), 1, height, width), device=device).to(dtype)
    gate = torch.sigmoid(F.conv2d(y.double(), weight.double(), bias.double(), padding=1))
    taps, added = draw(3 * channels, channels) * 0.1, draw(channels)
    moved = torch.einsum("kpn,kc->pcn", _windows(y.double(), frames), taps.double())
    moved = (moved + added.double()[:, None]).view(y.shape)
    expected = onto.double() + 0.5 * gate * factor.double() * moved
    maps = kernels.gate(y.flatten(2), weight, bias)
    got = kernels.motion_conv(y, taps, added, maps, factor, onto, frames, 0.5)
    found = {"motion convolution": _apart(got, expected)}
    gain, shift = draw(channels), draw(channels)
    video = y.double().unflatten(0, (videos, frames)).transpose(1, 2)
    expected = (
        F.group_norm(video, groups, gain.double(), shift.double()).transpose(1, 2).flatten(0, 1)
    )
    given = (y, frames, groups, gain, shift, 1e-5)
    found["pooled norm"] = _apart(kernels.pooled_norm(*given, False), expected)
    found["pooled norm, SiLU"] = _apart(kernels.pooled_norm(*given, True), F.silu(expected))
    heads = 2
    q, k, v = tokens = [draw(videos * frames, 2, channels) for _ in range(3)]
    lines = (
        t.double().unflatten(0, (videos, frames)).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4)
        for t in tokens
    )
    expected = (
        F.scaled_dot_product_attention(*lines).permute(0, 3, 1, 2, 4).reshape(tokens[0].shape)
    )
    got = kernels.frame_attention(q, k, v, frames, heads)
    found["frame attention"] = _apart(got, expected)
    return found


def _windows(y: Tensor, frames: int) -> Tensor:
    """`(b f) c h w` -> `(3 c) (b f) n`: frames i - 2, i - 1 and i, with zeros before frame 1."""
    video = F.pad(y.flatten(2).unflatten(0, (-1, frames)), (0, 0, 0, 0, 2, 0))
    taps = [video[:, tap : tap + frames].flatten(0, 1) for tap in range(3)]
    return torch.cat(taps, 1).transpose(0, 1)


def _apart(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).abs().max() / expected.abs().max()).item()


# Operations rather than plain functions, so that profilers and simulations see one each.
_OPERATIONS = {
    "gate": "(Tensor y, Tensor weight, Tensor bias) -> Tensor",
    "motion_conv": (
        "(Tensor y, Tensor taps, Tensor bias, Tensor maps, Tensor? factor, Tensor onto, "
        "int frames, float strength) -> Tensor"
    ),
    "pooled_norm": (
        "(Tensor x, int frames, int groups, Tensor weight, Tensor bias, float eps, bool silu)"
        " -> Tensor"
    ),
    "frame_attention": "(Tensor q, Tensor k, Tensor v, int frames, int heads) -> Tensor",
}


def _meta_gate(y: Tensor, *_: Any) -> Tensor:
    return y.new_empty((len(y), 9, y.shape[2]), dtype=torch.float32)


def _on_gpu(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        from . import kernels

        return getattr(kernels, name)(*args)

    return run


def _register() -> torch.library.Library:
    library = torch.library.Library("lamp", "FRAGMENT")
    for name, signature in _OPERATIONS.items():
        library.define(name + signature)
        library.impl(name, _on_gpu(name), "CUDA")
        library.impl(name, _META.get(name, _like_first), "Meta")
    return library


def _like_first(first: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(first)


_META: dict[str, Callable[..., Any]] = {"gate": _meta_gate}


def operation(name: str) -> Callable[..., Any]:
    """One of the kernels as an operation of PyTorch, see `lamp.method.kernels`."""
    _library()
    return getattr(torch.ops.lamp, name)


@functools.cache
def _library() -> torch.library.Library | None:
    if hasattr(torch.ops.lamp, "gate"):
        return None  # of another copy of this package in the process
    return _register()
