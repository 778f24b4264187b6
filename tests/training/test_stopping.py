"""When a training stops by itself, on curves that the tests draw, and what it keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.samples.small_training import small_clips, small_host, small_training
from benchmarks.toy import stopping
from benchmarks.toy.runs import Recipe
from lamp.clips.load import clips_from_images
from lamp.errors import LampError
from lamp.motion_file.file import load_motion_file
from lamp.training import outcome
from lamp.training.loop import Training
from lamp.training.outcome import Outcome, train_to_file
from lamp.training.recipe import TrainConfig
from lamp.training.session import RunFolder, SaveConfig
from lamp.training.state import TrainingState, restore, take_state
from lamp.training.stopping import (
    HELD_OUT,
    LIKENESS,
    MOTION,
    Measured,
    SampleScores,
    Stopping,
    best_of_run,
    best_step,
    merged,
    settled,
    stale,
)

PATIENCE = 4


def falling(slowness: float, seed: int, noise: float = 0.003) -> list[float]:
    """A loss that falls from 1 to 0.2, with noise."""
    draw = torch.Generator().manual_seed(seed)
    wobble = (torch.randn(400, generator=draw) * noise).tolist()
    return [(0.2 + 0.8 * math.exp(-t / slowness)) * (1 + w) for t, w in enumerate(wobble)]


def stops_at(losses: list[float], patience: int = PATIENCE) -> int:
    for count in range(1, len(losses) + 1):
        if stale([Measured(step, {HELD_OUT: x}) for step, x in enumerate(losses[:count])]) >= (
            patience
        ):
            return count
    return len(losses)


@pytest.mark.parametrize("slowness", [2.0, 5.0, 10.0, 20.0])
@pytest.mark.parametrize("seed", range(5))
def test_it_stops_after_95_percent_of_the_fall_and_long_before_the_end(
    slowness: float, seed: int
) -> None:
    at = stops_at(falling(slowness, seed))
    assert at > 3 * slowness  # exp(-3) is 5 %
    assert at < 7 * slowness + 3 * PATIENCE


def test_a_loss_that_rises_again_stops_it_and_its_lowest_is_the_best() -> None:
    losses = [1.0 - 0.05 * t for t in range(11)] + [0.5 + 0.02 * t for t in range(1, 30)]
    assert stops_at(losses) == 11 + PATIENCE
    measured = [Measured(step, {HELD_OUT: loss}) for step, loss in enumerate(losses)]
    assert best_step(measured) == 10


def test_samples_that_still_improve_keep_it_going() -> None:
    flat = [(step, 0.3) for step in range(8)]
    moving = [(step, {MOTION: 3.0 - 0.3 * step}) for step in range(8)]
    assert stale(merged(flat, [])) == 7
    assert stale(merged(flat, moving)) == 0
    assert best_step(merged(flat, moving)) == 7


def test_the_samples_decide_between_equal_losses() -> None:
    flat = [(step, 0.3) for step in range(3)]
    samples = [(0, {LIKENESS: 2.0}), (1, {LIKENESS: 0.1}), (2, {LIKENESS: 1.5})]
    assert best_step(merged(flat, samples)) == 1


# --- recorded runs --------------------------------------------------------------------------------

RECORDED = {
    name: stopping.Curve.of(stored)
    for name, stored in json.loads(
        Path(__file__).with_name("toy_curves.json").read_text(encoding="utf-8")
    ).items()
}
"""Curves of benchmarks.toy.stopping, by motion and seed."""


def config_of(curve: stopping.Curve) -> TrainConfig:
    return TrainConfig(steps=curve.steps, **stopping.settings(Recipe(steps=curve.steps)))


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs_stop_when_they_are_learned(name: str) -> None:
    curve = RECORDED[name]
    found = stopping.figures(curve, Recipe(steps=curve.steps))
    assert stopping.holds(found)
    assert found["stops"] <= 0.9 * curve.steps


@pytest.mark.parametrize("name", RECORDED)
def test_the_kept_motion_is_the_best_of_the_steps_with_a_low_rate(name: str) -> None:
    curve, kept = RECORDED[name], list[int]()
    config, rule = config_of(curve), Stopping(lambda: kept.append(last))
    for count, each in enumerate(curve.measured, start=1):
        last = each.step
        if rule.after(curve.measured[:count], config):
            break
    assert kept[-1] == best_of_run(curve.measured[:count], config)
    assert settled([Measured(kept[-1], {})], config)  # not one of the noisy steps before


def test_without_waiting_for_the_rate_a_run_would_stop_too_early() -> None:
    """The measures of 'wave' rest long before its videos do. At a constant rate nothing tells."""
    curve = RECORDED["wave 500"]
    stop = next(
        each.step
        for count, each in enumerate(curve.measured, start=1)
        if stale(curve.measured[:count]) >= stopping.PATIENCE
    )
    assert curve.share(stop) < 0.9 < curve.share(stopping.stops_at(curve, config_of(curve)))


def test_a_rate_that_is_low_in_the_warmup_is_not_settled() -> None:
    config = TrainConfig(steps=100, warmup=50, rate_schedule="cosine")
    steps = [
        each.step for each in settled([Measured(step, {}) for step in range(0, 101, 10)], config)
    ]
    assert steps == [90, 100]
    flat = TrainConfig(steps=100, warmup=50)
    assert len(settled([Measured(step, {}) for step in range(0, 101, 10)], flat)) == 11


# --- the measures of a sample ---------------------------------------------------------------------


def square(speed: int, frames: int = 6, size: int = 96) -> torch.Tensor:
    """A textured square that moves to the right on a textured ground."""
    draw = torch.Generator().manual_seed(0)
    ground = torch.rand(size, size, 3, generator=draw) * 0.5
    patch = torch.rand(32, 32, 3, generator=draw)
    video = ground.repeat(frames, 1, 1, 1)
    for frame in range(frames):
        video[frame, 32:64, 8 + speed * frame : 40 + speed * frame] = patch
    return video


def test_a_sample_scores_best_where_it_moves_as_the_clips_do() -> None:
    clips = clips_from_images([square(4), square(4)], "moves", 6, 96, 96)
    scores = SampleScores(clips)
    same, still, fast = (scores(square(speed)) for speed in (4, 0, 9))
    assert same[LIKENESS] == pytest.approx(0, abs=0.1)
    assert scores(torch.rand(6, 96, 96, 3))[LIKENESS] >= 0
    broken = square(4)
    broken[1:] = 1 - broken[1:]  # another picture than frame 1
    assert scores(broken)[LIKENESS] > 1
    pytest.importorskip("cv2")
    assert same[MOTION] < 0.2
    assert still[MOTION] > 2 and fast[MOTION] > 0.5


# --- in a run -------------------------------------------------------------------------------------


def begin(**settings: Any) -> Training:
    given = {"steps": 40, "learning_rate": 1e-3, "hold_out": 1, **settings}
    return small_training(small_host(), small_clips(), **given)


def train(training: Training, folder: Path, every: int = 1) -> list[str]:
    outcome = Outcome(folder / "run", {"family": "text16"}, run="me")
    said: list[str] = []
    train_to_file(
        training,
        RunFolder(folder / "states", {}),
        SaveConfig(0, 1, every),
        outcome,
        lambda report: None,
        lambda training: None,
        said.append,
    )
    return said


@pytest.mark.slow
def test_a_run_stops_and_keeps_the_best_motion_beside_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [0.5, 0.4, 0.3, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36]

    def validate(self: Training) -> float:
        self.validation.append((self.step, losses[self.step - 1]))
        return losses[self.step - 1]

    monkeypatch.setattr(Training, "validate", validate)
    training = begin(patience=2)
    said = train(training, tmp_path)
    assert training.step == 5
    assert load_motion_file(tmp_path / "run.safetensors").config.steps == 5
    best = load_motion_file(tmp_path / "run-best.safetensors")
    assert best.config.steps == 3
    assert any("5" in text and "3" in text and "run-best" in text for text in said)
    without = begin(steps=7)
    train(without, tmp_path / "without")
    assert without.step == 7
    assert not (tmp_path / "without/run-best.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 9], ids=["patience from a resume on", "patience all along"])
def test_the_best_motion_that_is_named_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    losses = [0.5, 0.3, 0.4, 0.41, 0.39, 0.42, 0.43, 0.44]

    def validate(self: Training) -> float:
        self.validation.append((self.step, losses[self.step - 1]))
        return losses[self.step - 1]

    monkeypatch.setattr(Training, "validate", validate)
    first = begin(patience=before, steps=4)
    train(first, tmp_path)
    again = begin(patience=2)
    restore(again, take_state(first, {}), {})
    marked: list[int] = []
    monkeypatch.setattr(outcome, "save_comparison", lambda *given: marked.append(given[2]))
    said = train(again, tmp_path)
    best = load_motion_file(tmp_path / "run-best.safetensors").config.steps
    assert (again.step, best) == ((5, 2) if before else (7, 5)) and marked == [best]
    assert any(f"step {best}," in text and "run-best" in text for text in said)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed after a state", "cancelled in a sample", "twice"])
def test_a_resume_keeps_a_best_motion_that_stays_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    losses = {
        "killed after a state": [0.5, 0.4, 0.3, 0.31, 0.32, 0.33],
        "cancelled in a sample": [0.5, 0.4, 0.39, 0.45, 0.46, 0.47],
        "twice": [0.3, 0.5, 0.45, 0.4, 0.42, 0.43, 0.44],
    }[how]

    def validate(self: Training) -> float:
        self.validation.append((self.step, losses[self.step - 1]))
        return losses[self.step - 1]

    def resumed(state: TrainingState, **settings: Any) -> Training:
        training = begin(**settings)
        restore(training, state, {})
        return training

    monkeypatch.setattr(Training, "validate", validate)
    if how == "killed after a state":
        first = begin(patience=9, steps=1)
        train(first, tmp_path)
        state = take_state(first, {})
        train(resumed(state, patience=9, steps=3), tmp_path)  # its state is lost
        end, best = 5, 3
    elif how == "cancelled in a sample":
        first = begin(patience=9, steps=2)
        train(first, tmp_path)
        first.advance()
        first.validate()  # and no more: the sample is cancelled
        state = take_state(first, {})
        end, best = 5, 2
    else:
        first = begin(steps=2)
        train(first, tmp_path)
        second = resumed(take_state(first, {}), patience=9, steps=4)
        train(second, tmp_path)
        state = take_state(second, {})
        end, best = 6, 4
    last = resumed(state, patience=2)
    said = train(last, tmp_path)
    assert load_motion_file(tmp_path / "run-best.safetensors").config.steps == best
    assert last.step == end and any(f"step {best}," in text for text in said)


def test_the_scores_survive_a_resume(tmp_path: Path) -> None:
    training = begin(patience=3)
    training.advance()
    training.sample_scores.append((1, {MOTION: 0.25}))
    again = begin(patience=5)  # may change
    restore(again, take_state(training, {}), {})
    assert again.sample_scores == [(1, {MOTION: 0.25})]


def test_what_would_never_stop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LampError, match="hold_out"):
        begin(patience=1, hold_out=0)
    with pytest.raises(LampError, match="sample_every"):
        train(begin(patience=1), tmp_path, every=0)
