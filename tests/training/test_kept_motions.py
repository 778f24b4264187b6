"""Motions that are kept during a run, to choose one by eye."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lamp.errors import LampError, MotionFileError
from lamp.motion_file.describe import describe_motion
from lamp.motion_file.file import load_motion_file
from lamp.motion_file.provenance import SCORES_KEY
from lamp.training import outcome as outcomes
from lamp.training.loop import Training
from lamp.training.outcome import Outcome, train_to_file
from lamp.training.recipe import SaveConfig
from lamp.training.session import RunFolder
from lamp.training.stopping import MOTION
from tests.training.test_training_files import ABOUT, new_training


@pytest.mark.parametrize("most", [1, 2, 3, 7, 50])
@pytest.mark.parametrize(("every", "steps"), [(1, 2), (2, 9), (250, 2000), (250, 2001), (300, 200)])
def test_they_are_spread_evenly(most: int, every: int, steps: int) -> None:
    config = SaveConfig(sample_every=every, keep_motions=most)
    kept = [step for step in range(steps + 1) if config.keeps_motion(step, steps)]
    samples = [step for step in range(every, steps, every)]
    assert len(kept) == min(most, len(samples)) and set(kept) <= set(samples)
    gaps = np.diff([0, *kept]) // every
    assert not kept or gaps.max() - gaps.min() <= 1


def test_none_are_kept_by_default_nor_without_samples() -> None:
    assert not any(SaveConfig().keeps_motion(step, 2000) for step in range(2001))
    with pytest.raises(LampError, match="keep_motions is 3"):
        SaveConfig(sample_every=0, keep_motions=3)


def run(folder: Path, steps: int, kept: int, **settings: Any) -> tuple[Path, list[str]]:
    """Train, with samples of one grey each: its step."""

    def sample(training: Training) -> None:
        grey = np.full((16, 16, 3), training.step * 20, np.uint8)
        name = f"sample-step{training.step:06}.webp"
        Image.fromarray(grey).save(folder / "run" / name, lossless=True)
        training.sample_scores.append((training.step, {MOTION: training.step / 8}))

    said: list[str] = []
    where = RunFolder(folder / "run", {}, run="me")
    (folder / "run").mkdir(parents=True)
    save = SaveConfig(0, 1, 2, keep_motions=kept)
    outcome = Outcome(folder / "m", ABOUT, run="me")
    training = new_training(steps, **settings)
    path = train_to_file(training, where, save, outcome, lambda report: None, sample, said.append)
    assert outcome.kept() == {int(file.stem[-6:]) for file in folder.glob("m-step*")}
    return path, said


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"rank": 2}])
def test_a_kept_motion_is_that_of_a_run_that_ends_there(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    run(tmp_path / "long", 6, 9, **settings)
    short, _ = run(tmp_path / "short", 4, 0, **settings)
    assert sorted(file.name for file in (tmp_path / "long").glob("m*")) == [
        "m-step000002.safetensors",
        "m-step000004.safetensors",
        "m.safetensors",
    ]
    kept = load_motion_file(tmp_path / "long" / "m-step000004.safetensors")
    wanted = load_motion_file(short)
    assert kept.config.steps == wanted.config.steps == 4
    assert all(torch.equal(kept.state[name], each) for name, each in wanted.state.items())
    last = load_motion_file(tmp_path / "long" / "m.safetensors")
    assert any(not torch.equal(last.state[name], each) for name, each in kept.state.items())


def test_a_kept_motion_has_the_picture_and_the_scores_of_its_sample(tmp_path: Path) -> None:
    run(tmp_path, 6, 9)
    for step, name in ((2, "m-step000002"), (4, "m-step000004"), (6, "m")):
        file = load_motion_file(tmp_path / f"{name}.safetensors")
        assert json.loads(file.metadata[SCORES_KEY])[MOTION] == step / 8
        _, _, picture = file.metadata["modelspec.thumbnail"].partition(",")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"))
        assert abs(float(pixels.mean()) - 20 * step) < 3
        assert f"{step / 8:g}" in describe_motion(file)


def test_a_motion_that_cannot_be_kept_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = outcomes.save_motion

    def refuse(path: Path, *given: Any, **more: Any) -> Path:
        if "-step" in path.name:
            raise MotionFileError("the disk is full")
        return save(path, *given, **more)

    monkeypatch.setattr(outcomes, "save_motion", refuse)
    path, said = run(tmp_path, 6, 9)
    assert load_motion_file(path).config.steps == 6 and len(said) == 2
