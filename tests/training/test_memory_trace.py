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
    precision: torch.dtype | None = None,
) -> int:
    """Bytes kept while the result of `forward` and its graph live."""
    trace = MemoryTrace(device, given)
    rules = DeviceRules(device, precision)
    with trace, rules:
        result = forward()
    rules.end_forward()
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


def test_autocast_copies_a_learned_weight_once_and_a_frozen_one_each_time() -> None:
    x, learned, frozen = meta(10, 32, dtype=BF16), meta(32, 32, grad=True), meta(32, 32)

    def twice(weight: Tensor) -> Callable[[], Tensor]:
        return lambda: F.linear(F.linear(x, weight), weight)

    with_learned = held_after(twice(learned), [x, learned], "cpu", BF16)
    x.requires_grad_(True)
    with_frozen = held_after(twice(frozen), [x, frozen], "cpu", BF16)

    copy, row = 32 * 32 * 2, 10 * 32 * 2
    assert with_learned == copy + 2 * row  # its copy, the input of the second, the result
    assert with_frozen == 2 * copy + row


def test_autocast_runs_norms_in_fp32_on_a_gpu_alone() -> None:
    x, weight = meta(2, 32, 8, 8, dtype=BF16, grad=True), meta(32)

    def types(device: str) -> torch.dtype:
        with DeviceRules(device, BF16):
            return F.group_norm(x, 32, weight.to(BF16), weight.to(BF16)).dtype

    assert types("cuda") == torch.float32
    assert types("cpu") == BF16


def test_allocations_on_a_gpu_are_rounded_up() -> None:
    with MemoryTrace("cuda", []) as trace:
        small = meta(3) + 1
    assert trace.peak == 2 * 512 and small.numel() == 3
