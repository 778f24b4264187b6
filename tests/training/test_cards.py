"""Settings chosen for a card: they fit, harm least, leave what was set by hand, and are noted."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.samples.tiny_models import tiny_patcher
from benchmarks.speed.models import SD15_CONFIG
from lamp.cli import DONE, main
from lamp.clips.settings import ClipSettings
from lamp.hosts.diffusers.unet import shadow_host
from lamp.motion_file.file import load_motion_file
from lamp.training.memory import cards
from lamp.training.memory.cards import CardSettings, available_memory, settings_for
from lamp.training.memory.estimate import GB, Estimator, MemoryEstimate, MemoryPlan
from lamp.training.memory.plan import OutOfMemoryPlanError
from lamp.training.recipe import CARDS
from lamp.training.state import TrainingState
from tests.helpers.toy_runs import write_config
from tests.helpers.trainer_runs import SETTINGS, TrainerRuns

MB = 2**20
PLAN = MemoryPlan(precision="bf16")


def estimated(plan: MemoryPlan) -> MemoryEstimate:
    """A model of the costs: whole numbers, near those of SD 1.x."""
    learned = 12 if plan.rank else 250
    state = {"adamw8bit": 2, "muon": 4, "prodigy": 16}.get(plan.optimizer, 8)
    share = plan.positions * plan.batch / 40960
    activations = (3000 if plan.gradient_checkpointing else 16000) * share
    return MemoryEstimate(
        plan, 1700 * MB, 4 * learned * MB, state * learned * MB, 0, int(activations) * MB
    )


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    there = ["adamw", "adamw8bit"]
    monkeypatch.setattr(cards, "installed_optimizers", lambda: there)
    return there


def chosen(card: str, free: int = 0, **fixed: Any) -> CardSettings:
    return settings_for(card, estimated, PLAN, free, fixed)


@pytest.mark.parametrize("card", [card for card in CARDS if card != "auto"])
def test_what_is_chosen_fits_with_a_gigabyte_to_spare(card: str) -> None:
    found = chosen(card)
    size = int(card.split()[0]) * GB
    assert found.estimate.total <= size - GB
    assert card in found.describe() and found.estimate.describe() in found.describe()


def test_more_memory_gives_settings_that_harm_less() -> None:
    def settings(card: str) -> tuple[Any, ...]:
        plan = chosen(card).estimate.plan
        return plan.gradient_checkpointing, plan.optimizer, plan.rank, plan.positions

    whole = 16 * 40 * 64
    assert settings("24 GB") == (False, "adamw", 0, whole)
    assert settings("12 GB") == (True, "adamw", 0, whole)
    assert settings("8 GB") == (True, "adamw8bit", 0, whole)
    checkpointing, _, rank, positions = settings("6 GB")
    assert checkpointing and (rank or positions < whole)


def test_an_optimizer_that_is_not_installed_is_not_chosen(installed: list[str]) -> None:
    installed.remove("adamw8bit")
    for card in ("6 GB", "8 GB"):
        found = chosen(card)
        assert found.training["optimizer"] == "adamw"
        assert found.estimate.total <= available_memory(card, 0)


@pytest.mark.parametrize(
    "fixed",
    [
        {"rank": 64},
        {"batch": 2},
        {"optimizer": "prodigy"},
        {"frames": 8},
        {"width": 32, "height": 32},
        {"gradient_checkpointing": False, "rank": 0, "optimizer": "adamw", "batch": 1},
    ],
)
def test_what_was_set_by_hand_stays(fixed: dict[str, Any]) -> None:
    found = chosen("12 GB", **fixed)
    for name, value in fixed.items():
        assert getattr(found.estimate.plan, name) == value
    assert found.estimate.total <= 11 * GB


def test_precision_and_accumulation_are_not_its_own_to_change() -> None:
    plan = replace(PLAN, precision="fp32", accumulate=4, ema=0.5)
    found = settings_for("8 GB", estimated, plan, 0, {}).estimate.plan
    own = {*cards.CHOSEN, "frames", "height", "width"}
    for each in fields(plan):
        assert each.name in own or getattr(found, each.name) == getattr(plan, each.name), each.name


def test_nothing_fits() -> None:
    with pytest.raises(OutOfMemoryPlanError):
        chosen("6 GB", gradient_checkpointing=False, frames=16, width=64, height=40)


def test_auto_takes_what_is_free() -> None:
    assert chosen("auto", 40 * GB).training["gradient_checkpointing"] is False
    found = chosen("auto", 7 * GB)
    assert found.estimate.total <= 7 * GB and found.training["gradient_checkpointing"]
    assert "7.0 GB" in found.describe()


def test_clips_that_the_preset_is_not_for_are_noticed() -> None:
    found = chosen("12 GB", width=32)
    assert not found.differs_from(ClipSettings(**found.clips, bucket=True))
    for name, value in {"width": 512, "height": 64, "frames": 8}.items():
        advice = found.differs_from(ClipSettings(**{**found.clips, name: value}))
        assert f"{name} {value}" in advice and f"{name} {found.clips[name]}" in advice


def test_a_run_that_goes_on_keeps_what_was_chosen_when_it_began() -> None:
    small, large = chosen("6 GB", optimizer="adamw"), chosen("24 GB", batch=2)
    assert small.as_begun(None) == (small, "")
    state = TrainingState({}, {"settings": asdict(small.estimate.plan)})
    assert small.as_begun(state) == (small, "")
    kept, told = large.as_begun(state)
    assert (small.training["rank"], large.training["rank"], kept.training["rank"]) == (64, 0, 64)
    assert kept.training["batch"] == 2  # which was set by hand, and is refused
    assert kept.clips == large.clips
    assert kept.training | {"rank": 0} == large.training  # checkpointing may change, too
    assert "rank 64" in told and "rank 0" in told and "batch" not in told
    # What else has to change for them to fit is not known yet.
    assert (large.checkpointing, kept.checkpointing) == ("on", "auto")
    by_hand = chosen("24 GB", gradient_checkpointing=False)
    assert by_hand.as_begun(state)[0].checkpointing == "off"


def test_what_a_run_cannot_go_on_with_is_left_to_be_refused_by_name() -> None:
    prodigy = chosen("24 GB", optimizer="prodigy")
    begun = {**asdict(PLAN), "update": "offload", "optimizer": "adamw"}
    state = TrainingState({}, {"settings": begun})
    assert prodigy.as_begun(state) == (prodigy, "")  # offload does not go with it
    assert chosen("24 GB").as_begun(state, processes=2)[1] == ""  # half a clip for each


# --- where it is chosen ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_writes_it_into_the_file(tmp_path: Path, capsys: Any) -> None:
    config = write_config(tmp_path)
    text = config.read_text().replace('checkpointing = "off"\n', "")
    config.write_text(text)
    changes = ["recipe.card=8 GB", "recipe.batch=2", "recipe.steps=2"]
    given = [part for change in changes for part in ("--set", change)]
    assert main(["train", str(config), *given]) == DONE
    assert "8 GB" in capsys.readouterr().out
    header = load_motion_file(tmp_path / "output/right_00001.safetensors").metadata
    record, settings = (json.loads(header[key]) for key in ("lamp.card", "lamp.training"))
    assert record["card"] == "8 GB" and record["batch"] == 2 and record["width"] == 32
    for name in ("batch", "rank", "optimizer", "gradient_checkpointing", "frames"):
        assert settings[name] == record[name]
    assert settings["learning_rate"] == 2e-3  # of the config file


def run_node(node_classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **inputs: Any) -> Any:
    node = node_classes["LAMP_TrainingPreset"]
    monkeypatch.setattr(node, "hidden", type("Hidden", (), {"unique_id": None}))
    return node.execute(tiny_patcher(64), **inputs)


@pytest.mark.slow
def test_muon_fits_small_cards_at_full_size() -> None:
    """With SD 1.x, as docs/train_a_motion.md says, and without an optional package."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        estimator = Estimator(UNet2DConditionModel(**SD15_CONFIG), shadow_host)
    plan = replace(PLAN, height=40, width=64, gradient_checkpointing=True)
    muon = replace(plan, optimizer="muon")
    saved = estimator(plan).total - estimator(muon).total
    assert 0.8 * GB < saved < 0.95 * GB
    assert estimator(muon).total <= available_memory("8 GB", 0)
    assert estimator(replace(muon, update="offload")).total <= available_memory("6 GB", 0)


@pytest.mark.slow
@torch.inference_mode()  # as ComfyUI runs nodes
def test_the_node_gives_sizes_for_the_clips(
    node_classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run_node(node_classes, monkeypatch, card="24 GB", width=256, batch=3, rank=4)
    preset, width, height, frames, text = output.result
    assert (width, height, frames) == (256, 320, 16)
    assert preset.training["batch"] == 3 and preset.training["rank"] == 4
    assert "24 GB" in text and "256 x 320" in text


@pytest.mark.slow
def test_the_trainer_takes_it_and_writes_it_into_the_file(
    node_classes: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = run_node(node_classes, monkeypatch, card="6 GB", rank=4, batch=2).result[0]
    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    monkeypatch.setitem(SETTINGS, "preset", preset)
    runs.train("run")
    header = load_motion_file(tmp_path / "motions/run_00001.safetensors").metadata
    assert json.loads(header["lamp.card"])["card"] == "6 GB"
    settings = json.loads(header["lamp.training"])
    assert settings["rank"] == 4 and settings["batch"] == 2


@pytest.mark.slow
def test_a_training_resumes_when_the_preset_chooses_otherwise(
    node_classes: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    told = []
    for free in (5, 40):
        preset = chosen("auto", free * GB, optimizer="adamw")
        monkeypatch.setitem(SETTINGS, "preset", preset)
        told.append(runs.run("run", "latest" if told else "none").ui["text"][0])
    assert "rank 64" in told[1] and "rank 64" not in told[0]
