"""The fused kernels against their formulas in Triton's interpreter, run by `test_fused`.

The interpreter runs the kernels' arithmetic on the CPU. It has no products in bf16.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lamp.method import fused, layers
from lamp.method.layers import MotionConv, TemporalAttention


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels, used for tensors on the CPU."""
    from lamp.method import kernels

    monkeypatch.setattr(fused, "ready", lambda x: not torch.is_grad_enabled())
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
    assert len(found) == 5
    assert max(found.values()) < bound


def test_a_wrong_kernel_does_not_pass(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    own = kernels.pooled_norm
    monkeypatch.setattr(kernels, "pooled_norm", lambda *args: own(*args) * 1.01)
    found = fused.differences("cpu", torch.float32)
    assert found["pooled norm"] > 1e-3 > found["gated sum"]


@pytest.mark.parametrize("limit", [4, 0], ids=["maps", "rows"])
@pytest.mark.parametrize(("videos", "frames"), [(2, 3), (1, 1)])
def test_the_motion_layer_is_that_of_plain_operations(
    videos: int, frames: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_CHANNELS_A_POSITION", limit)
    conv = randomised(MotionConv(37))
    y, onto = (draw(videos * frames, 37, 5, 7, seed=seed) for seed in (1, 2))
    spread, each = torch.rand(len(y), 1, 5, 7), torch.rand(len(y), 1, 1, 1)
    for strength, base in ((0.7, None), (spread, onto), (each, None)):
        expected = conv(y, frames, strength, base)  # with gradients: plain operations
        with torch.no_grad():
            got = conv(y.clone(), frames, strength, base)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


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
    got = kernels.pooled_norm(x, 2, 4, weight, bias, 1e-5)
    torch.testing.assert_close(
        got.double(), expected.transpose(1, 2).flatten(0, 1), rtol=1e-3, atol=1e-3
    )
