"""A training step that finds no memory: what is saved, and what the user is told."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.samples.small_training import small_clips, small_host, small_training
from lamp.errors import LampError, is_out_of_memory
from lamp.training.outcome import Outcome, train_to_file
from lamp.training.recipe import SaveConfig
from lamp.training.session import RunFolder, run_training
from tests.training.test_out_of_memory import no_memory
from tests.training.test_training_files import ABOUT, WHO


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}, {"rank": 4}], ids=["plain", "ema", "rank"])
def test_the_failed_steps_tensors_are_gone_when_the_rest_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """What is saved is put together on the device, which was full."""
    host, held, seen = small_host(), [], []
    training = small_training(host, small_clips(), steps=4, **settings)
    conv = host.unet.conv_out

    def full(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        held.append(weakref.ref(args[0]))
        if training.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def write(self: Outcome, *given: Any, **more: Any) -> Path:
        seen.append(held[-1]() is None)
        return whole(self, *given, **more)

    whole = Outcome.write
    monkeypatch.setattr(Outcome, "write", write)
    outcome, folder = Outcome(tmp_path / "m", ABOUT), RunFolder(tmp_path / "m", WHO)
    handle = conv.register_forward_pre_hook(full)
    with pytest.raises(LampError, match="in step 3.*step 2"):
        train_to_file(training, folder, SaveConfig(0, 1, 0), outcome, lambda report: None)
    handle.remove()
    assert seen == [True] and list(tmp_path.glob("m-step000002-stopped.safetensors"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_only_settings_that_may_change_are_named_for_a_resume(
    tmp_path: Path, batch: int, checkpointing: bool
) -> None:
    host = small_host()
    given = {"batch": batch, "gradient_checkpointing": checkpointing}
    training = small_training(host, small_clips(), steps=4, **given)
    folder = RunFolder(tmp_path, WHO)
    with no_memory(host.unet.conv_out, first=4), pytest.raises(LampError) as caught:
        run_training(training, folder, SaveConfig(0, 1, 0), lambda report: None)
    resume = str(caught.value).partition("resume from it")[0]
    fixed = ("batch", "accumulate", "optimizer", "frames", "width", "height", "rank", "update")
    assert not any(name in resume for name in fixed)
    assert ("checkpointing" in resume) == (not checkpointing)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("CUDA error: out of memory", True),
        ("HIP error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: invalid argument", False),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_a_full_device_is_recognised_by_whatever_finds_it_full(text: str, full: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is full
