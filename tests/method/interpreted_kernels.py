"""The fused kernels against their formulas in Triton's interpreter, run by `test_fused`.

The interpreter runs the kernels' arithmetic on the CPU. It has no products in bf16.
"""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lamp.method import fused, layers, motion
from lamp.method.layers import MotionConv, TemporalAttention
from lamp.method.layout import FrameLayout
from lamp.method.overrides import Hooks


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels, used for tensors on the CPU."""
    from lamp.method import kernels

    monkeypatch.setattr(fused, "ready", lambda x: not torch.is_grad_enabled())
    monkeypatch.setattr(fused, "multiplies_fast", lambda x: True)
    monkeypatch.setattr(fused, "operation", lambda name: getattr(kernels, name))
    return kernels


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    for seed, parameter in enumerate(module.requires_grad_(False).parameters()):
        parameter.copy_(draw(*parameter.shape, seed=seed + 7) * 0.3)
    return module


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 5e-3)])
def test_the_check_before_the_first_use_passes(dtype: torch.dtype, bound: float) -> None:
    found = fused.differences("cpu", dtype)
    assert len(found) == 4
    assert max(found.values()) < bound


def test_a_wrong_kernel_does_not_pass(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    own = kernels.pooled_norm
    monkeypatch.setattr(kernels, "pooled_norm", lambda *args: own(*args) * 1.01)
    found = fused.differences("cpu", torch.float32)
    assert found["pooled norm"] > 1e-3 > found["motion convolution"]


@pytest.mark.parametrize(
    ("videos", "frames", "channels", "size"),
    [(2, 3, 37, (5, 6)), (1, 1, 4, (2, 3)), (1, 16, 36, (4, 6)), (1, 3, 128, (16, 24))],
    ids=["frames within tiles", "one frame", "several tiles", "large tiles"],
)
def test_the_motion_layer_is_that_of_plain_operations(
    videos: int, frames: int, channels: int, size: tuple[int, int],
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls: list[int] = []
    own = kernels.motion_conv
    monkeypatch.setattr(kernels, "motion_conv", lambda *args: calls.append(1) or own(*args))
    conv = randomised(MotionConv(channels))
    exact = copy.deepcopy(conv).double()
    y, onto = (draw(videos * frames, channels, *size, seed=seed) for seed in (1, 2))
    spread, each = torch.rand(len(y), 1, *size), torch.rand(len(y), 1, 1, 1)
    for strength, base in ((0.7, None), (spread, onto), (each, None)):
        precise = strength.double() if isinstance(strength, Tensor) else strength
        # With gradients: plain operations.
        expected = exact(y.double(), frames, precise, None if base is None else base.double())
        with torch.no_grad():
            got = conv(y, frames, strength, base)
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 3


def test_a_new_motion_layer_changes_nothing_bit_for_bit() -> None:
    conv, y = MotionConv(5), draw(4, 5, 3, 3)
    layers.initialise(conv)
    with torch.no_grad():
        assert torch.equal(conv(y, 2), y)


@pytest.mark.parametrize(("frames", "heads", "width"), [(16, 2, 40), (20, 1, 80)])
def test_temporal_attention_is_that_of_plain_operations(
    frames: int, heads: int, width: int
) -> None:
    attention = randomised(TemporalAttention(heads * width, heads))
    x = draw(2 * frames, 2, heads * width)
    expected = attention(x, frames)
    with torch.no_grad():
        got = attention(x, frames)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_pooled_norm_is_accurate_far_from_zero(kernels: ModuleType) -> None:
    """A difference of sums of squares would have no digits left."""
    x = draw(4, 8, 5, 9) + 1000
    weight, bias = draw(8, seed=1), draw(8, seed=2)
    video = x.double().unflatten(0, (2, 2)).transpose(1, 2)
    expected = F.group_norm(video, 4, weight.double(), bias.double(), 1e-5)
    got = kernels.pooled_norm(x, 2, 4, weight, bias, 1e-5, False)
    torch.testing.assert_close(
        got.double(), expected.transpose(1, 2).flatten(0, 1), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("changed", ["nothing", "hook", "forward"])
def test_a_pooled_norm_includes_the_silu_unless_other_code_is_between_them(
    changed: str, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[bool] = []
    own = kernels.pooled_norm
    monkeypatch.setattr(kernels, "pooled_norm", lambda *args: joined.append(args[-1]) or own(*args))
    norm = torch.nn.GroupNorm(2, 4)
    sequence = torch.nn.Sequential(norm, torch.nn.SiLU(), torch.nn.Flatten())
    randomised(sequence)
    if changed == "hook":
        norm.register_forward_hook(lambda _, args, out: -out)
    elif changed == "forward":
        monkeypatch.setattr(norm, "forward", lambda x: -torch.nn.GroupNorm.forward(norm, x))
    x, layout = draw(6, 4, 3, 2), FrameLayout(3, 2)
    video = x.double().unflatten(0, (2, 3)).transpose(1, 2)
    expected = F.group_norm(video, 2, norm.weight.double(), norm.bias.double())
    expected = expected.transpose(1, 2).flatten(0, 1).flatten(1)
    with Hooks() as stack:
        motion._join_silu(sequence, layout, stack)
        motion._pool_norm(norm, layout, stack)
        with torch.no_grad():
            got = sequence(x).double()
    sign = 1 if changed == "nothing" else -1
    torch.testing.assert_close(got, F.silu(sign * expected), rtol=1e-5, atol=1e-5)
    assert joined == [changed == "nothing"]
    assert "forward" not in vars(sequence)
