"""Updates during the backward pass against those after it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.samples.small_training import FRAMES, small_clips, small_host
from lamp.errors import LampError
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.loop import Training
from lamp.training.optimizers import SingleProcess
from lamp.training.recipe import TrainConfig
from lamp.training.state import StateError, read_state, restore, take_state, write_state

STEPS = 3
NO_CLIPPING = 1e6
WHO = {"base": "abc", "clips": "def"}


def run(
    steps: int = STEPS, group: SingleProcess | None = None, rate: float = 1e-2, **settings: Any
) -> Training:
    host = small_host()
    config = TrainConfig(steps=9, frames=FRAMES, learning_rate=rate, **settings)
    motion = Motion(map_unet(host.unet)).initialise(0)
    training = Training(host, motion, small_clips(), config, group)
    for _ in range(steps):
        training.advance()
    return training


def assert_same(found: Training, expected: Training) -> None:
    assert found.losses == expected.losses
    for one, other in zip(found.trained, expected.trained, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["backward", "offload"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": True},
        {"rank": 2, "ema": 0.9, "batch": 2},
        {"optimizer": "muon"},
    ],
)
def test_without_clipping_the_numbers_are_those_of_the_ordinary_step(
    update: str, settings: dict[str, Any]
) -> None:
    expected = run(clip_norm=NO_CLIPPING, **settings)
    found = run(clip_norm=NO_CLIPPING, update=update, **settings)
    assert_same(found, expected)


def test_there_is_one_gradient_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    training = run(0, update="backward")
    counts: list[int] = []
    step = training.optimizer.step

    def count(*given: Any) -> Any:
        counts.append(sum(p.grad is not None for p in training.trained))
        return step(*given)

    monkeypatch.setattr(training.optimizer, "step", count)
    training.advance()
    assert counts == [1] * len(training.trained)
    assert all(p.grad is None for p in training.trained)


def test_each_gradient_is_clipped_by_the_norm_of_those_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = 0.02
    training = run(0, update="backward", clip_norm=clip, rate=1e-12)
    whole: dict[int, Tensor] = {}
    clipped: list[tuple[int, Tensor]] = []
    note, step = training._gradient_check.note, training.optimizer.step

    def see(parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            whole[id(parameter)] = parameter.grad.double().clone()
        note(parameter)

    def keep(*given: Any) -> Any:
        clipped.extend((id(p), p.grad.clone()) for p in training.trained if p.grad is not None)
        return step(*given)

    monkeypatch.setattr(training._gradient_check, "note", see)
    monkeypatch.setattr(training.optimizer, "step", keep)
    training.advance()
    square, factors = 0.0, []
    for parameter, gradient in clipped:
        square += whole[parameter].square().sum().item()
        factors.append(min(1.0, clip / (math.sqrt(square) + 1e-6)))
        expected = (whole[parameter] * factors[-1]).float()
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-12)
    assert factors[0] > factors[-1] and factors[-1] < 0.9


@pytest.mark.slow
def test_a_resumed_run_goes_on_exactly(tmp_path: Path) -> None:
    whole, begun, resumed = (run(n, update="offload", clip_norm=0.02) for n in (3, 2, 0))
    path = write_state(tmp_path / "state.safetensors", take_state(begun, WHO))
    restore(resumed, read_state(path), WHO)
    resumed.advance()
    assert_same(resumed, whole)
    with pytest.raises(StateError, match="offload"):
        restore(run(0, clip_norm=0.02), read_state(path), WHO)


def test_a_loss_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training = run(1, update="backward")
    before = [p.detach().clone() for p in training.trained]
    monkeypatch.setattr(
        training, "_loss", lambda *batch: sum(p.sum() for p in training.trained) * math.nan
    )
    with pytest.raises(LampError, match="nan"):
        training.advance()
    assert all(map(torch.equal, training.trained, before))
    assert take_state(training, WHO).step == 1


def test_an_interrupted_backward_pass_leaves_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    training = run(1, update="backward")
    step, calls = training.optimizer.step, iter(range(99))

    def interrupted(*given: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(training.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.advance()
    with pytest.raises(StateError):
        take_state(training, WHO)
    assert not any(p._post_accumulate_grad_hooks for p in training.trained)


@pytest.mark.parametrize(
    ("update", "settings"),
    [
        ("backward", {"accumulate": 2}),
        ("offload", {"precision": "fp16"}),
        ("backward", {"optimizer": "prodigy"}),
        ("offload", {"optimizer": "adamw8bit"}),
    ],
)
def test_what_needs_all_gradients_is_refused(update: str, settings: dict[str, Any]) -> None:
    with pytest.raises(LampError, match=str(next(iter(settings.values())))) as refused:
        TrainConfig(update=update, **settings)
    assert update in str(refused.value) and next(iter(settings)) in str(refused.value)


def test_several_processes_are_refused() -> None:
    group = SingleProcess()
    group.count = 2
    with pytest.raises(LampError, match="2 processes"):
        run(0, group, update="backward")
