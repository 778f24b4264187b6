"""A time budget in place of a number of steps, by a clock that the tests hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lamp.training.budget
import lamp.training.loop
import lamp.training.overhead
from benchmarks.samples.small_training import FRAMES, small_training
from lamp.errors import LampError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.latents import LatentClips
from lamp.training.loop import StepReport, Training, train
from lamp.training.recipe import TrainConfig
from lamp.training.session import RunFolder, SaveConfig, newest_state, run_training
from lamp.training.state import StateError, read_state, restore, take_state

pytestmark = pytest.mark.slow  # many of them

WHO = {"base": "abc", "clips": "def"}
FIRST, STEP, SAMPLE, SAVE = 20.0, 2.0, 9.0, 3.0
MINUTES = 1.0


class Clock:
    """Stands still but for what is done."""

    now = 100.0
    step = STEP

    def perf_counter(self) -> float:
        return self.now


class Stop(Exception):
    """A cancel."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (lamp.training.loop, lamp.training.overhead, lamp.training.budget):
        monkeypatch.setattr(module, "time", clock)
    gradients, save = Training._gradients, RunFolder.save_state

    def step(self: Training, rate: float) -> float:
        clock.now += FIRST if not self.losses else clock.step
        return gradients(self, rate)

    def saved(self: RunFolder, training: Training) -> Path:
        clock.now += SAVE
        return save(self, training)

    monkeypatch.setattr(Training, "_gradients", step)
    monkeypatch.setattr(RunFolder, "save_state", saved)
    return clock


def begin(host: DiffusersHost, clips: LatentClips, group: Any = None, **settings: Any) -> Training:
    rate = {"learning_rate": 1e-3, "rate_schedule": "cosine", "warmup": 50}
    given = {"minutes": MINUTES, "steps": 2000, **rate, **settings}
    return small_training(host, clips, group, **given)


def run(
    training: Training, folder: Path, clock: Clock, until: int = 0, every: int = 20
) -> list[StepReport]:
    reports: list[StepReport] = []

    def on_step(report: StepReport) -> None:
        reports.append(report)
        if report.step == until:
            raise Stop

    def sample(training: Training) -> None:
        clock.now += SAMPLE

    save_config = SaveConfig(2 * every, 2, every)
    run_training(training, RunFolder(folder, WHO), save_config, on_step, sample)
    return reports


@pytest.mark.parametrize("every", [20, 0, 1000])
def test_it_ends_in_time_with_samples_and_states(
    host: DiffusersHost, clips: LatentClips, clock: Clock, tmp_path: Path, every: int
) -> None:
    begun = clock.now
    reports = run(begin(host, clips), tmp_path, clock, every=every)
    spent = clock.now - begun
    # One more step would not fit, unless it brings another sample and state.
    assert 60 * MINUTES - STEP - SAMPLE - SAVE < spent <= 60 * MINUTES
    last = reports[-1]
    assert last.step == last.steps
    assert {report.steps for report in reports[3:]} == {last.step}
    # The time left is known from then on.
    so_far = FIRST + 2 * STEP + (SAVE + SAMPLE if every else 0)
    assert reports[2].seconds_left == pytest.approx(spent - so_far)


def test_the_slow_first_step_does_not_count_for_the_others(
    host: DiffusersHost, clips: LatentClips, clock: Clock, tmp_path: Path
) -> None:
    """At its mean of (20 + 2 + 2) / 3 seconds, only 8 steps would fit."""
    reports = run(begin(host, clips), tmp_path, clock, every=0)
    assert len(reports) == 1 + (60 * MINUTES - FIRST) / STEP


def test_the_schedule_fits_the_steps(
    host: DiffusersHost, clips: LatentClips, clock: Clock, tmp_path: Path
) -> None:
    training = begin(host, clips, minutes=2.0)
    reports = run(training, tmp_path, clock, every=0)
    rates = [report.learning_rate for report in reports]
    assert rates[-1] < 0.01 * max(rates)
    assert training.config.warmup == len(reports) // 15
    assert max(rates) > 0.99e-3
    assert rates.index(max(rates)) < len(rates) // 10


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_resumed_run_keeps_the_number_of_steps(
    host: DiffusersHost, clips: LatentClips, clock: Clock, tmp_path: Path, schedule: str
) -> None:
    straight = begin(host, clips, rate_schedule=schedule)
    steps = len(run(straight, tmp_path / "one", clock, every=0))
    half = begin(host, clips, rate_schedule=schedule)
    with pytest.raises(Stop):
        run(half, tmp_path / "two", clock, until=10, every=0)
    found = newest_state([tmp_path / "two"])
    assert found is not None and found[1].step == 10
    clock.step = 9 * STEP  # another program uses the device
    again = begin(host, clips, rate_schedule=schedule)
    restore(again, read_state(found[0]), WHO)
    reports = run(again, tmp_path / "two", clock, every=0)
    assert reports[-1].step == steps
    assert again.losses == straight.losses
    for name, tensor in straight.motion.state_dict().items():
        assert torch.equal(tensor, again.motion.state_dict()[name]), name


def test_a_run_stopped_before_it_was_planned_is_planned_when_resumed(
    host: DiffusersHost, clips: LatentClips, clock: Clock, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        run(begin(host, clips), tmp_path, clock, until=2, every=0)
    found = newest_state([tmp_path])
    assert found is not None
    again, begun = begin(host, clips), clock.now
    restore(again, found[1], WHO)
    run(again, tmp_path, clock, every=0)
    assert 60 * MINUTES - STEP < clock.now - begun <= 60 * MINUTES


def test_a_resumed_run_refuses_another_budget(host: DiffusersHost, clips: LatentClips) -> None:
    before = begin(host, clips)
    before.advance()
    state = take_state(before, WHO)
    for minutes in (4.0, 0.0):
        with pytest.raises(StateError, match="minutes"):
            restore(begin(host, clips, minutes=minutes), state, WHO)


def test_a_budget_for_few_steps_is_told(
    host: DiffusersHost, clips: LatentClips, clock: Clock, tmp_path: Path, caplog: Any
) -> None:
    reports = run(begin(host, clips, minutes=0.1), tmp_path, clock, every=0)
    assert len(reports) == 4  # what was timed, and one more
    assert any("4" in record.message for record in caplog.records if record.levelname == "WARNING")


class Second:
    """The second of two processes; the first has planned 77 steps."""

    rank, count = 1, 2
    given: list[float]

    def mean_(self, tensors: list[Tensor]) -> None:
        if len(tensors) == 1:
            assert tensors[0].item() == 0
            tensors[0].fill_(77 / 2)


def test_all_processes_take_the_steps_of_the_first(
    host: DiffusersHost, clips: LatentClips, clock: Clock, tmp_path: Path
) -> None:
    assert len(run(begin(host, clips, Second()), tmp_path, clock, every=0)) == 77


def test_the_function_takes_steps_only(host: DiffusersHost, clips: LatentClips) -> None:
    motion = Motion(map_unet(host.unet)).initialise(0)
    with pytest.raises(LampError, match="minutes"):
        train(host, motion, clips, TrainConfig(frames=FRAMES, minutes=1.0))
