"""When the fused kernels are used, and that a failure is reported; see `interpreted_kernels`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lamp.method import fused
from lamp.method.layers import MotionConv


@pytest.mark.slow
def test_the_kernels_are_their_formulas() -> None:
    """In a process of its own, as Triton chooses between compiler and interpreter at import."""
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted_kernels.py")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(file)],
        env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-4000:]


def small_layer() -> MotionConv:
    conv = MotionConv(5).requires_grad_(False)
    for parameter in conv.parameters():
        parameter.copy_(torch.randn(parameter.shape))
    return conv


def test_a_kernel_that_fails_is_reported_once_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Tensor:
        raise RuntimeError("ptxas exited with 7")

    monkeypatch.setattr(fused, "_broken", set())
    monkeypatch.setattr(fused, "ready", lambda x: not fused._broken)
    monkeypatch.setattr(fused, "multiplies_fast", lambda x: True)
    monkeypatch.setattr(fused, "operation", lambda name: fail)
    conv, y = small_layer(), torch.randn(4, 5, 3, 4)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "lamp"):
        first, second = conv(y, 2), conv(y, 2)
    torch.testing.assert_close(first, conv(y, 2))
    assert torch.equal(first, second)
    assert [record.message.count("ptxas exited with 7") for record in caplog.records] == [1]


def test_running_out_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fused, "ready", lambda x: True)
    monkeypatch.setattr(fused, "multiplies_fast", lambda x: True)
    monkeypatch.setattr(fused, "operation", lambda name: fail)
    with pytest.raises(torch.OutOfMemoryError):
        small_layer()(torch.randn(4, 5, 3, 4), 2)


def test_kernels_are_for_gpus_without_gradients() -> None:
    x = torch.empty(1, device="meta", dtype=torch.float16)  # stands for a GPU
    with torch.no_grad():
        assert not fused.ready(torch.empty(1))
        with fused.only_on("meta"):
            assert fused.ready(x)
            with torch.enable_grad():
                assert not fused.ready(x)
            with torch.autocast("cpu", torch.bfloat16):
                assert fused.ready(x)
            assert not fused.ready(x.double())
        assert not fused.ready(x)


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_products_need_tensor_cores_and_half_precision(
    capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for dtype in (torch.float16, torch.bfloat16):
        x = SimpleNamespace(device=torch.device("cuda"), dtype=dtype)
        assert fused.multiplies_fast(x) is fast
    assert not fused.multiplies_fast(torch.empty(1, device="meta"))
