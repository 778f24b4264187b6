"""What needs no model to be refused is refused before one is loaded, or clips are encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lamp.cli import DONE, FAILED, main, train_run
from lamp.errors import LampError
from lamp.training.optimizers import installed_optimizers
from tests.helpers.toy_runs import write_clips, write_config
from tests.helpers.trainer_runs import SETTINGS, TrainerRuns

pytestmark = pytest.mark.slow  # runs to go on from


def run(config: Path, *changes: str) -> int:
    return main(["train", str(config), *(part for c in changes for part in ("--set", c))])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run that left a state."""
    config = write_config(tmp_path_factory.mktemp("run"))
    assert run(config, "output.save_every=2", "recipe.rate_schedule=constant") == DONE
    return config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("recipe.hold_out=3", "hold_out"),
        ("recipe.seed=6", "seed"),
        ("recipe.rank=4", "rank"),
        ("recipe.query_decay=change", "query_decay"),
        ("recipe.steps=1", "steps"),
        ("recipe.precision=bf16", "precision"),
        ("recipe.optimizer=adamw8bit", "adamw8bit"),
        ("data.stride=2", "clips"),
        ("data.frames=400", "400"),
    ],
)
def test_on_the_command_line(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, change: str, named: str
) -> None:
    if "8bit" in change and "adamw8bit" in installed_optimizers():
        pytest.skip("it is there")
    monkeypatch.setattr(train_run, "load_image_model", lambda *given: pytest.fail("it was loaded"))
    resume = "none" if "hold_out" in change else "latest"
    assert run(kept, change, f"output.resume={resume}") == FAILED
    assert named in capsys.readouterr().err


def test_other_clips(kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(train_run, "load_image_model", lambda *given: pytest.fail("it was loaded"))
    more = kept.parent / "more"
    more.mkdir()
    write_clips(more, 4)
    assert run(kept, f"data.folder={more}", "output.resume=latest") == FAILED
    assert "clips" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [({"hold_out": 2}, "hold_out"), ({"seed": 1}, "seed"), ({"precision": "bf16"}, "precision")],
)
def test_in_the_node(
    node_classes: dict[str, Any],
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    named: str,
) -> None:
    from lamp.hosts.comfy import clips as comfy_clips

    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    runs.train("early")
    monkeypatch.setattr(comfy_clips, "prepare_clips", lambda *given: pytest.fail("encoded"))
    monkeypatch.setitem(SETTINGS, *next(iter(change.items())))
    with pytest.raises(LampError, match=named):
        runs.train("early", "none" if "hold_out" in change else "latest")
