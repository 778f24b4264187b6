"""The motion of a training state, saved when it is chosen."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from lamp.errors import LampError
from lamp.motion_file.file import load_motion_file, run_of
from tests.helpers.trainer_runs import TrainerRuns


@pytest.mark.slow
def test_a_state_gives_a_motion_once(
    node_classes: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = node_classes["LAMP_Trainer"].__module__.rpartition(".")[0]
    save = importlib.import_module(f"{package}.training_run").save_motion_of_state
    TrainerRuns(node_classes, toy, tmp_path, monkeypatch).train("a b/马")
    names = [save(f"a b/马_00001/state-step{step:06}.safetensors") for step in (1, 2, 1)]
    assert names == [f"a b/马_00001-step{step:06}.safetensors" for step in (1, 2, 1)]
    motions = tmp_path / "motions"
    finished = motions / "a b/马_00001.safetensors"
    assert len(list(motions.rglob("*"))) == 4  # with the folder
    first, last = (load_motion_file(motions / name) for name in names[:2])
    wanted = load_motion_file(finished)
    assert all((last.state[name] == each).all() for name, each in wanted.state.items())
    assert any((first.state[name] != each).any() for name, each in wanted.state.items())
    assert (first.config.steps, last.config.steps) == (1, 2)
    assert run_of(motions / names[0]) == run_of(finished)
    assert last.metadata["modelspec.thumbnail"] == wanted.metadata["modelspec.thumbnail"]
    for name in ("none", "latest", "a b/马_00001/state-step000009.safetensors", "../x", ""):
        with pytest.raises(LampError, match=name or "state"):
            save(name)
