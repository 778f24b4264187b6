"""What single layers keep and take, against formulas by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lamp.training.memory.trace import DeviceRules, MemoryTrace

BF16 = torch.bfloat16


def meta(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def held_after(
    forward: Callable[[], Tensor],
    given: list[Tensor],
    device: str = "cpu",
) -> int:
    """Bytes kept while the result of `forward` and its graph live."""
    trace = MemoryTrace(device, given)
    with trace, DeviceRules(device):
        result = forward()
    held = trace.held
    del result
    assert trace.held == 0  # nothing is followed longer than it lives
    return held


def test_chain_of_learned_linears_keeps_the_inputs_of_each() -> None:
    x, first, second = meta(10, 32), meta(64, 32, grad=True), meta(16, 64, grad=True)

    held = held_after(lambda: F.linear(F.linear(x, first), second), [x, first, second])

    assert held == 10 * (64 + 16) * 4  # the input of the second, and the result


def test_frozen_linear_keeps_nothing() -> None:
    x, weight, last = meta(10, 32, grad=True), meta(64, 32), meta(16, 64)

    held = held_after(lambda: F.linear(F.linear(x, weight), last), [x, weight, last])

    assert held == 10 * 16 * 4  # the result alone


def test_backward_peak_of_a_linear() -> None:
    x, weight = meta(10, 32, grad=True), meta(64, 32, grad=True)
    upstream = meta(10, 64)
    trace = MemoryTrace("cpu", [x, weight, upstream])

    with trace:
        result = F.linear(x, weight)
        result.backward(upstream)

    gradients = (10 * 32 + 64 * 32) * 4
    assert trace.held == trace.peak == 10 * 64 * 4 + gradients


def test_convolution_takes_scratch_memory_for_its_layout() -> None:
    x, weight = meta(2, 16, 8, 8), meta(32, 16, 3, 3)
    x_size, w_size, y_size = 2 * 16 * 64 * 4, 32 * 16 * 9 * 4, 2 * 32 * 64 * 4
    peaks = {}
    for device in ("cpu", "cuda"):
        with MemoryTrace(device, [x, weight]) as trace:
            F.conv2d(x, weight, padding=1)
        peaks[device] = trace.peak

    assert peaks == {"cpu": y_size + x_size + w_size, "cuda": 2 * y_size + x_size + w_size}


@pytest.mark.parametrize(
    "device, dtype", [("cpu", torch.float32), ("cuda", torch.float32), ("cuda", BF16)]
)
def test_attention_keeps_no_matrix_of_pairs(device: str, dtype: torch.dtype) -> None:
    batch, heads, tokens, width = 2, 4, 256, 32
    x = meta(batch, heads, tokens, width, dtype=dtype, grad=True)

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(x * 1, x * 2, x * 3)

    held = held_after(attention, [x], device)

    size = batch * heads * tokens * width * dtype.itemsize
    statistics = batch * heads * tokens * 4
    assert 4 * size + statistics <= held <= 4 * size + statistics + 1024  # q, k, v, result


def test_allocations_on_a_gpu_are_rounded_up() -> None:
    with MemoryTrace("cuda", []) as trace:
        small = meta(3) + 1
    assert trace.peak == 2 * 512 and small.numel() == 3
