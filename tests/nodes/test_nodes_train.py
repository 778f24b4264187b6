"""LAMP Trainer in ComfyUI: where a run writes, which run it resumes, on which devices."""

from __future__ import annotations

import copy
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.samples.tiny_models import tiny_patcher
from lamp.errors import LampError
from tests.helpers.trainer_runs import TrainerRuns


@pytest.fixture
def place(node_classes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that finds the folder of a run, with empty folders."""
    import folder_paths

    motions = ([str(tmp_path / "motions")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lamp_motion", motions)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    (tmp_path / "motions").mkdir()
    package = node_classes["LAMP_Trainer"].__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.training_run")


def test_the_seed_does_not_change_between_runs(node_classes: dict[str, Any]) -> None:
    """The host changes every input named seed after a run, unless the input declines it."""
    kinds = node_classes["LAMP_Trainer"].INPUT_TYPES()["required"]
    assert kinds["seed"][1]["control_after_generate"] is False


def keep_state(place: Any, run: str) -> Path:
    folder = Path(place.runs_root(), run)
    folder.mkdir(parents=True)
    header = {"lamp.state": json.dumps({"format": 1, "step": 1})}
    save_file({"random": torch.zeros(1)}, folder / "state-step000001.safetensors", metadata=header)
    return folder


def test_latest_only_considers_the_same_name(place: Any) -> None:
    horse = keep_state(place, "horse_00001")
    other = keep_state(place, "horse_2_00001")
    os.utime(next(horse.iterdir()), ns=(0, 0))  # older than the other run
    assert place.find_place("horse", "latest", place.NodeProgress(None)).folder == horse
    assert place.find_place("horse_2", "latest", place.NodeProgress(None)).folder == other
    fresh = place.find_place("hors", "latest", place.NodeProgress(None))
    assert fresh.folder == horse.with_name("hors_00001")


def test_numbers_only_count_the_same_name(place: Any) -> None:
    motions = place.motion_root()
    for name in ("run_00003", "run_2_00007", "run_20251122x"):
        Path(motions, f"{name}.safetensors").touch()
    assert place.find_place("run", "none", place.NodeProgress(None)).motion == motions / "run_00004"
    Path(motions, "run_00004-step000009-stopped.safetensors").touch()
    assert place.find_place("run", "none", place.NodeProgress(None)).motion == motions / "run_00005"


def test_a_state_deleted_meanwhile_is_skipped(place: Any) -> None:
    """A training deletes old states while the list is made, like a broken link here."""
    kept = keep_state(place, "horse_00001")
    (kept / "state-step000002.safetensors").symlink_to(kept / "gone")
    assert place.resume_choices() == ["none", "latest", "horse_00001/state-step000001.safetensors"]
    assert place.find_place("horse", "latest", place.NodeProgress(None)).folder == kept


@pytest.mark.slow
def test_what_the_run_did_otherwise_than_asked_stays_on_the_node(
    node_classes: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    runs.model = runs.model.clone()
    runs.model.set_model_sampler_post_cfg_function(lambda given: given["denoised"])
    told = [runs.run("colt", resume).ui["text"][0] for resume in ("latest", "latest", "none")]
    assert all("colt_0000" in text and "sampler_post_cfg_function" in text for text in told)
    assert ["no earlier" in text for text in told] == [True, False, False]
    assert ["left to train" in text for text in told] == [False, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["CLIP", "VAE"])
def test_another_text_encoder_or_vae_cannot_go_on_with_a_training(
    node_classes: dict[str, Any],
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    runs.train("colt")
    if changed == "CLIP":
        runs.clip = runs.clip.clone()
        runs.clip.clip_layer(-2)  # as CLIP Set Last Layer does
    else:
        runs.vae = copy.deepcopy(runs.vae)
        with torch.no_grad():
            runs.vae.first_stage_model.quant_conv.weight.mul_(1.2)
    with pytest.raises(LampError, match=changed):
        runs.train("colt", "latest")
    runs.train("filly")


def test_a_state_that_cannot_be_read_is_named(place: Any) -> None:
    kept = keep_state(place, "horse_00001")
    (kept / "state-step000002.safetensors").write_bytes(b"half")
    progress = place.NodeProgress(None)
    assert place.find_place("horse", "latest", progress).state.step == 1
    assert len(progress.warnings) == 1 and "state-step000002" in progress.warnings[0]


class _OnApple:
    """Noise levels on a device that has no float64."""

    def __init__(self, sigmas: torch.Tensor) -> None:
        self._sigmas = sigmas

    def __len__(self) -> int:
        return len(self._sigmas)

    def cpu(self) -> torch.Tensor:
        return self._sigmas

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_the_host_never_computes_float64_on_the_device(
    comfy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamp.hosts.comfy.training import ComfyHost
    from lamp.method.schedule import scaled_linear_alphas

    model = tiny_patcher()
    sampling = model.get_model_object("model_sampling")
    # Shadows the buffer, which cannot be replaced itself.
    monkeypatch.setitem(sampling.__dict__, "sigmas", _OnApple(sampling.sigmas))
    host = ComfyHost(model)
    torch.testing.assert_close(host.alphas_cumprod, scaled_linear_alphas())


@pytest.mark.parametrize("sampled", [False, True])
def test_the_last_preview_is_the_loss_plot(place: Any, sampled: bool) -> None:
    """New front ends keep showing a node's last preview: without one they show its results."""

    class Bar:
        def __init__(self) -> None:
            self.shown: list[Any] = []

        def update(self, done: int, total: int, picture: Any) -> None:
            self.shown.append((done, total, picture.size))

    bar = Bar()
    show = place.Show(bar, lambda _: torch.zeros(2, 8, 8, 3))
    if sampled:
        show.sample(None)
    show.end(torch.zeros(1, 36, 64, 3), 7)
    assert bar.shown == ([(7, 7, (64, 36))] if sampled else [])
