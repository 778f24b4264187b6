"""What a run tells of its speed and of the time that is left, by a clock that the tests hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lamp.training.loop
import lamp.training.overhead
from benchmarks.samples.small_training import small_training
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.training.latents import LatentClips
from lamp.training.loop import PACE, StepReport, Training
from lamp.training.session import RunFolder, SaveConfig, run_training

STEP, SAMPLE, SAVE = 2.0, 50.0, 7.0


class Clock:
    """Stands still but for what is done."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lamp.training.loop, "time", clock)
    monkeypatch.setattr(lamp.training.overhead, "time", clock)
    return clock


def ran(
    host: DiffusersHost,
    clips: LatentClips,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    save_config: SaveConfig,
    steps: int,
    seconds: Any = lambda step: STEP,
) -> list[StepReport]:
    """The reports of a run whose steps, samples and states take these times and compute nothing."""
    training = small_training(host, clips, steps=steps, learning_rate=1e-3)

    def step(rate: float) -> float:
        clock.now += seconds(training.step + 1)
        return 0.5

    def save(self: RunFolder, training: Training) -> None:
        clock.now += SAVE

    def sample(training: Training) -> None:
        clock.now += SAMPLE

    monkeypatch.setattr(training, "_gradients", step)
    monkeypatch.setattr(lamp.training.loop, "apply_gradients", lambda *others: None)
    monkeypatch.setattr(RunFolder, "save_state", save)
    reports: list[StepReport] = []
    run_training(training, RunFolder(folder, {}), save_config, reports.append, sample)
    return reports


@pytest.mark.parametrize(("every", "save", "steps"), [(4, 3, 12), (5, 5, 12), (0, 4, 9), (7, 0, 9)])
def test_the_time_left_is_what_steps_samples_and_states_will_take(
    host: DiffusersHost,
    clips: LatentClips,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    every: int,
    save: int,
    steps: int,
) -> None:
    ends: list[float] = []
    save_config = SaveConfig(save, 1, every)
    reports = ran(host, clips, clock, monkeypatch, tmp_path, save_config, steps)
    ends.append(clock.now)
    assert [report.step for report in reports] == list(range(1, steps + 1))
    begun = 100.0
    assert {report.seconds_per_step for report in reports} == {STEP}
    known = max(every, save)  # from then on each kind was seen once
    spent = begun
    for report in reports:
        step = report.step
        spent += STEP
        spent += SAVE if save and (step % save == 0 or step == steps) else 0
        spent += SAMPLE if every and (step % every == 0 or step == steps) else 0
        if step >= known:
            assert report.seconds_left == pytest.approx(ends[0] - spent)
    assert reports[-1].seconds_left == 0


def test_the_speed_is_that_of_the_last_steps(
    host: DiffusersHost,
    clips: LatentClips,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def seconds(step: int) -> float:
        return 90.0 if step == 1 else 3.0 if step > 30 else 1.0

    save_config = SaveConfig(0, 1, 0)
    reports = ran(host, clips, clock, monkeypatch, tmp_path, save_config, 30 + PACE, seconds)
    for report in reports:
        begin = max(report.step - PACE, min(report.step - 1, 1))  # without the first, slow step
        window = range(begin + 1, report.step + 1)
        mean = sum(map(seconds, window)) / len(window)
        assert report.seconds_per_step == pytest.approx(mean)
    assert reports[-1].seconds_per_step == 3.0
