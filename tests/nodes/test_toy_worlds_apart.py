"""Clips, first frames and motions of one toy world on the base of the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lamp.clips.load import clips_from_images
from lamp.errors import IncompatibleModelError, LampError
from tests.helpers.trainer_runs import TrainerRuns, pictures

MOTIONS = {"sprites": "toy_moves_right.safetensors", "scenes": "toy_horse.safetensors"}


@pytest.fixture(scope="module")
def scenes(node_classes: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return node_classes["LAMP_LoadToyBase"].execute("scenes").result


def test_clips_of_another_size_are_refused(
    node_classes: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    runs._clips = clips_from_images([pictures(4, 64), pictures(5, 64)], "moves", 3, 64, 64)
    with pytest.raises(LampError, match="^LAMP Trainer: .*64 x 64.*32 x 32"):
        runs.train("run")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("world", MOTIONS)
def test_a_motion_of_the_other_world_is_refused(
    node_classes: dict[str, Any], toy: Any, scenes: Any, world: str
) -> None:
    node = node_classes["LAMP_LoadMotion"]
    bases = {"sprites": toy[0], "scenes": scenes[0]}
    node.execute(bases.pop(world), MOTIONS[world])
    (other,) = bases.values()
    with pytest.raises(IncompatibleModelError, match=f"{MOTIONS[world]}.* {world}"):
        node.execute(other, MOTIONS[world])


@torch.inference_mode()
@pytest.mark.parametrize("side", [32, 64])
def test_a_video_of_another_size_is_warned_of(
    node_classes: dict[str, Any], toy: Any, scenes: Any, caplog: Any, side: int
) -> None:
    node = node_classes["LAMP_FirstFrameCondition"]
    for own, models in {32: toy, 64: scenes}.items():
        caplog.clear()
        node.execute(models[2], pictures(1, 64), side, side, 2)
        warned = [each for each in caplog.records if f"{own} x {own}" in each.getMessage()]
        assert bool(warned) == (own != side)
