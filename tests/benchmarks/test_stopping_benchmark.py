"""The benchmark of `patience`: curves of known shape, and a short run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.toy import stopping
from benchmarks.toy.runs import Recipe
from lamp.toy.cases import training_clips
from lamp.training.validation import split_clips

STEPS = 100


def curve(rest: int, peak: int) -> stopping.Curve:
    """Measures that rest from the step `rest` on, and an overlap that grows until `peak`."""
    steps = range(5, STEPS + 1, 5)
    overlap = {step: 0.2 + 0.6 * min(1.0, step / peak) for step in steps if step >= 40}
    loss = {step: {"held_out_loss": max(1.0 - step / 100, 1.0 - rest / 100)} for step in steps}
    return stopping.Curve(STEPS, 0.2, overlap, loss)


def test_a_stop_is_compared_with_the_first_step_that_has_nearly_the_final_overlap() -> None:
    found = stopping.figures(curve(rest=60, peak=80), Recipe(steps=STEPS))
    assert found["needed"] == 80  # at 75 it is 0.7625 of 0.8
    # The rate is a quarter of its highest only from about two thirds of the steps on.
    assert 65 <= found["stops"] <= 80
    share = found["stops"] / 80
    assert found["gain"] == pytest.approx(share, abs=1e-3)
    assert found["overlap"] == pytest.approx((0.2 + 0.6 * share) / 0.8, abs=1e-3)
    assert stopping.holds(found) == (found["overlap"] >= 0.95)


def test_a_late_or_an_early_stop_does_not_pass() -> None:
    good = {"stops / needed": 1.2, "overlap": 0.96}
    assert stopping.holds(good)
    assert not stopping.holds({**good, "stops / needed": 1.3})
    assert not stopping.holds({**good, "stops / needed": 0.7})
    assert not stopping.holds({**good, "overlap": 0.94})


def test_measures_that_never_rest_train_to_the_end() -> None:
    assert stopping.figures(curve(rest=100, peak=80), Recipe(steps=STEPS))["stops"] == STEPS


@pytest.mark.parametrize("seed", [0, 1, 502])
def test_the_ninth_clip_is_the_one_held_out(seed: int) -> None:
    clips = stopping.with_held_out("wave", seed)
    trained, (held_out,) = split_clips(9, 1, seed)
    own = training_clips(seed, "wave")
    np.testing.assert_array_equal(clips.frames[trained], own.frames)
    assert [clips.captions[i] for i in trained] == own.captions
    assert not (clips.frames[held_out] == own.frames).all((1, 2, 3, 4)).any()


@pytest.mark.slow
def test_a_run_is_measured_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stopping, "MEASUREMENTS", 2)
    monkeypatch.setattr(stopping, "FROM", 2)
    arguments = ["--motions", "moves_right", "--steps", "2", "--cases", "1"]
    arguments += ["--sample-steps", "1", "--keep", str(tmp_path)]
    stopping.main(arguments)
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    (kept,) = tmp_path.iterdir()
    assert set(json.loads(kept.read_text("utf-8"))["scores"]) == {"1", "2"}
    monkeypatch.setattr(stopping, "curve", None)
    stopping.main(arguments)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
