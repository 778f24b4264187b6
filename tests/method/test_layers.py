"""The learned layers against their formulas, written out plainly."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lamp.method import attention, layers
from lamp.method.layers import MotionConv, TemporalAttention, causal_conv1d


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomised(module: torch.nn.Module, seed: int = 3) -> torch.nn.Module:
    module = module.double().requires_grad_(False)
    for i, parameter in enumerate(module.parameters()):
        parameter.copy_(randn(*parameter.shape, seed=seed + i))
    return module


@pytest.fixture(params=["maps", "rows"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute the temporal convolution, whatever the sizes."""
    limit = 4 if request.param == "maps" else 0
    monkeypatch.setattr(layers, "_CHANNELS_A_POSITION", limit)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.usefixtures("way")
def test_causal_conv_is_the_formula(frames: int) -> None:
    """out[i] = w0 y[i-2] + w1 y[i-1] + w2 y[i] + b, with zeros before frame 1."""
    y, weight, bias = randn(2, frames, 3, 2, 2), randn(4, 3, 3, seed=1), randn(4, seed=2)
    expected = torch.zeros(2, frames, 4, 2, 2, dtype=torch.float64)
    for frame in range(frames):
        expected[:, frame] = bias[:, None, None]
        for tap in range(3):
            past = frame - 2 + tap
            if past >= 0:
                expected[:, frame] += torch.einsum("oc,bchw->bohw", weight[..., tap], y[:, past])
    torch.testing.assert_close(causal_conv1d(y, weight, bias), expected)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.usefixtures("way")
def test_causal_conv_is_the_same_where_products_are_slow(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, weight, bias = randn(2, frames, 6, 4, 3), randn(5, 6, 3, seed=1), randn(5, seed=2)
    expected = causal_conv1d(y, weight, bias).float()
    monkeypatch.setattr(layers, "_SLOW_PRODUCTS", True)
    given = y.float(), weight.float(), bias.float()
    with torch.no_grad():
        torch.testing.assert_close(causal_conv1d(*given), expected)
        nothing = causal_conv1d(given[0], torch.zeros_like(given[1]), torch.zeros(5))
    assert not nothing.any()


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.usefixtures("way")
def test_causal_conv_has_the_gradients_of_its_numbers(frames: int) -> None:
    y, weight, bias = randn(2, frames, 3, 2, 1), randn(4, 3, 3, seed=1), randn(4, seed=2)
    given = tuple(tensor.requires_grad_() for tensor in (y, weight, bias))
    assert torch.autograd.gradcheck(causal_conv1d, given)


def test_taps_are_one_matrix_in_memory_whatever_is_loaded() -> None:
    """So that no step copies them; the shape is that of a convolution all the same."""
    conv = MotionConv(4)
    conv.load_state_dict({name: randn(*p.shape).float() for name, p in conv.named_parameters()})
    weight = copy.deepcopy(conv).conv1d.weight
    assert weight.shape == (4, 4, 3)
    assert weight.permute(2, 1, 0).is_contiguous()
    conv(randn(2, 4, 3, 3).float(), 2).sum().backward()
    assert conv.conv1d.weight.grad.stride() == weight.stride()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("way")
def test_the_result_keeps_the_memory_layout_of_the_input(layout: torch.memory_format) -> None:
    conv, y = randomised(MotionConv(3)), randn(4, 3, 4, 4).contiguous(memory_format=layout)
    assert conv(y, 2).is_contiguous(memory_format=layout)


@pytest.mark.usefixtures("way")
def test_motion_conv_is_the_formula() -> None:
    """out = y + conv1d(y) * sigmoid(conv_gate(y)), scaled by the strength."""
    frames, strength = 4, 0.5
    conv = randomised(MotionConv(3))
    y = randn(2 * frames, 3, 4, 4)
    gate = torch.nn.functional.conv2d(y, conv.conv_gate.weight, conv.conv_gate.bias, padding=1)
    temporal = causal_conv1d(y.unflatten(0, (2, frames)), conv.conv1d.weight, conv.conv1d.bias)
    expected = y + strength * temporal.flatten(0, 1) * torch.sigmoid(gate)
    torch.testing.assert_close(conv(y, frames, strength), expected)


def test_motion_conv_looks_back_only() -> None:
    frames, changed = 6, 3
    conv = randomised(MotionConv(3))
    y = randn(frames, 3, 4, 4)
    other = y.clone()
    other[changed:] += 1
    before, after = conv(y, frames), conv(other, frames)
    assert torch.equal(before[:changed], after[:changed])
    assert not torch.allclose(before[changed], after[changed])


def test_motion_conv_keeps_videos_apart() -> None:
    frames = 3
    conv = randomised(MotionConv(3))
    y = randn(2 * frames, 3, 4, 4)
    alone = torch.cat([conv(part, frames) for part in y.chunk(2)])
    torch.testing.assert_close(conv(y, frames), alone)


def plain_attention(module: TemporalAttention, x: Tensor, frames: int) -> Tensor:
    """Softmax attention, one head, one position and one video at a time."""
    out = torch.zeros_like(x)
    width = x.shape[2] // module.heads
    for video in range(x.shape[0] // frames):
        rows = slice(video * frames, (video + 1) * frames)
        for position in range(x.shape[1]):
            tokens = x[rows, position]
            heads = []
            for head in range(module.heads):
                part = slice(head * width, (head + 1) * width)
                q, k, v = (
                    tokens @ layer.weight[part].T
                    for layer in (module.to_q, module.to_k, module.to_v)
                )
                heads.append(torch.softmax(q @ k.T / math.sqrt(width), dim=-1) @ v)
            joined = torch.cat(heads, dim=-1)
            out[rows, position] = joined @ module.to_out[0].weight.T + module.to_out[0].bias
    return out


def test_attention_is_the_formula() -> None:
    module = randomised(TemporalAttention(8, 2))
    x = randn(2 * 5, 3, 8) * 0.3
    torch.testing.assert_close(module(x, 5), plain_attention(module, x, 5))


@pytest.mark.parametrize("limit", [1, 4, 5])
@pytest.mark.parametrize("learns", [False, True])
def test_attention_split_over_many_positions_is_the_same(
    limit: int, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = randomised(TemporalAttention(8, 2))
    x = randn(2 * 3, 6, 8).requires_grad_(learns)
    with torch.set_grad_enabled(learns):
        whole = module(x, 3)
        monkeypatch.setattr(attention, "_MAX_SEQUENCES", limit)
        torch.testing.assert_close(module(x, 3), whole)


def test_short_sequences_on_a_gpu_are_plain_products_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = (randn(2, 5, 6, 4).transpose(1, 2) for _ in range(3))  # views of b f s d
    expected = F.scaled_dot_product_attention(q, k, v)
    monkeypatch.setattr(attention, "_PRODUCTS_ON", ("cpu",))
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    with torch.no_grad():
        got = attention.attend_frames(q, k, v)
    torch.testing.assert_close(got, expected)
    assert got.stride() == q.stride()


@pytest.mark.parametrize("frames", [5, 40])  # plain products, and PyTorch's kernel
def test_attention_learns_what_pytorch_does(frames: int) -> None:
    q, k, v = (randn(2, 3, frames, 4).requires_grad_() for _ in range(3))
    upstream = randn(2, 3, frames, 4)
    gradients = [
        torch.autograd.grad(attend(q, k, v), (q, k, v), upstream)
        for attend in (attention.attend_frames, F.scaled_dot_product_attention)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_new_layer_adds_exactly_nothing() -> None:
    conv, attention, norm = MotionConv(4), TemporalAttention(4, 2), torch.nn.LayerNorm(4)
    layers.initialise(conv)
    layers.initialise_attention(attention, norm, torch.Generator().manual_seed(0))
    y = randn(6, 4, 3, 3).float()
    assert torch.equal(conv(y, 3), y)
    assert attention(norm(randn(6, 5, 4).float()), 3).abs().max() == 0
    assert attention.to_q.weight.abs().min() > 0  # a gradient can reach it


def test_attention_does_not_need_that_products_ignore_what_they_are_not_to_add(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch up to 2.13 reads it on Apple's GPUs, and unset memory may hold NaN."""
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    expected, empty = F.scaled_dot_product_attention(q, k, v), torch.Tensor.new_empty

    def added(given: Tensor, a: Tensor, b: Tensor, *, beta: float, alpha: float) -> Tensor:
        return beta * given + alpha * torch.bmm(a, b)

    def unset(like: Tensor, size: tuple[int, ...], **more: Any) -> Tensor:
        return empty(like, size, **more).fill_(float("nan"))

    monkeypatch.setattr(torch, "baddbmm", added)
    monkeypatch.setattr(torch.Tensor, "new_empty", unset)
    torch.testing.assert_close(attention.attend_frames(q, k, v), expected)
