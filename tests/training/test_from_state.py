"""The motion of a training state, where no file of it was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lamp.errors import LampError
from lamp.motion_file.file import load_motion_file, save_motion
from lamp.motion_file.provenance import LICENSE_KEY, SCORES_KEY, TRAINING_KEY
from lamp.training.from_state import motion_of_state
from lamp.training.optimizers import installed_optimizers
from lamp.training.outcome import Outcome, train_to_file
from lamp.training.recipe import SaveConfig
from lamp.training.session import RunFolder, states
from lamp.training.state import StateError, read_state, restore, write_state
from tests.training.test_training_files import WHO, new_training

pytestmark = pytest.mark.slow  # many of them

ABOUT = {"family": "text16", "prompt": "a horse runs", "width": 64}


def run(folder: Path, mark: str = "me", **settings: Any) -> list[Path]:
    """Six steps, with a state of every second one; returns the states."""
    where = RunFolder(folder / "m", WHO, 9, mark)
    outcome = Outcome(folder / "m", ABOUT, {LICENSE_KEY: "CC0-1.0"}, run=mark)
    training = new_training(6, **settings)
    train_to_file(training, where, SaveConfig(2, 9, 2), outcome, lambda report: None)
    return states(folder / "m")


def restored(path: Path, **settings: Any) -> dict[str, torch.Tensor]:
    training = new_training(6, **settings)
    restore(training, read_state(path), WHO)
    return Outcome(Path("m"), ABOUT).file(training).state


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"rank": 2}, {"rank": 2, "ema": 0.9}])
def test_it_is_what_the_training_had_learned(tmp_path: Path, settings: dict[str, Any]) -> None:
    paths = run(tmp_path, **settings)
    assert len(paths) == 3
    for path, step in zip(paths, (2, 4, 6), strict=True):
        found = motion_of_state(path, tmp_path / "m")
        wanted = restored(path, **settings)
        assert found.state.keys() == wanted.keys()
        assert all(torch.equal(found.state[name], each) for name, each in wanted.items())
        assert found.config.steps == step and found.config.prompt == "a horse runs"
        assert found.config.width == 64 and f"{step:06}" in found.name
        assert found.metadata[LICENSE_KEY] == "CC0-1.0" and TRAINING_KEY in found.metadata


def test_it_has_the_scores_of_its_own_step(tmp_path: Path) -> None:
    early, _, last = run(tmp_path, hold_out=1)
    scores = [
        json.loads(motion_of_state(path, tmp_path / "m").metadata[SCORES_KEY])
        for path in (early, last)
    ]
    finished = load_motion_file(tmp_path / "m.safetensors").metadata[SCORES_KEY]
    assert scores[1] == json.loads(finished) != scores[0]


def test_averages_that_the_state_does_not_hold_are_refused(tmp_path: Path) -> None:
    path = run(tmp_path, ema=0.9)[0]
    state = read_state(path)
    del state.facts["trained"]  # as in states of earlier versions
    write_state(path, state)
    with pytest.raises(StateError, match="step 2"):
        motion_of_state(path, tmp_path / "m")


@pytest.mark.skipif("schedulefree" not in installed_optimizers(), reason="needs schedulefree")
def test_a_schedule_free_average_is_refused(tmp_path: Path) -> None:
    path = run(tmp_path, optimizer="schedulefree")[0]
    with pytest.raises(StateError, match="step 2"):
        motion_of_state(path, tmp_path / "m")


def test_a_motion_of_another_run_does_not_describe_it(tmp_path: Path) -> None:
    path = run(tmp_path)[0]
    motion = load_motion_file(tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").unlink()
    for extra in ({}, {"lamp.run": "another"}):
        save_motion(tmp_path / "m.safetensors", motion.state, motion.config, extra=extra)
        with pytest.raises(StateError, match="no motion m "):
            motion_of_state(path, tmp_path / "m")


def test_a_state_of_an_earlier_version_has_no_mark(tmp_path: Path) -> None:
    path = run(tmp_path, mark="")[0]
    assert motion_of_state(path, tmp_path / "m").config.steps == 2


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(LampError, match="safetensors"):
        motion_of_state(tmp_path / "m.safetensors", tmp_path / "m")
