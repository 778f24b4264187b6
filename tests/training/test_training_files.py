"""What a run reads, replaces and leaves: nothing mapped, nothing of others, nothing averaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from benchmarks.samples.small_training import small_clips, small_host, small_training
from lamp.errors import LampError, MotionFileError
from lamp.files.names import is_plain_name
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import RUN_KEY, load_motion_file, run_of, save_motion
from lamp.training.loop import Training
from lamp.training.outcome import Outcome, train_to_file
from lamp.training.recipe import TrainConfig
from lamp.training.session import RunFolder, SaveConfig, mark_of, newest_state
from lamp.training.state import read_state, restore

WHO = {"base": "abc", "clips": "def"}
ABOUT = {"family": "text16"}


def new_training(steps: int, **settings: Any) -> Training:
    return small_training(small_host(), small_clips(), steps=steps, **settings)


def run(training: Training, folder: Path, motion: Path, mark: str, every: int = 1) -> Path:
    files = RunFolder(folder, WHO, run=mark)
    outcome = Outcome(motion, ABOUT, run=mark)
    return train_to_file(training, files, SaveConfig(every, 9, 0), outcome, lambda report: None)


def mapped(path: Path) -> bool:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc, which tells what is mapped")
    return str(path.resolve()) in maps.read_text()


def test_files_that_were_read_are_not_mapped_any_more(tmp_path: Path) -> None:
    motion = run(new_training(2), tmp_path / "run", tmp_path / "m", "a")
    (state, *_) = sorted((tmp_path / "run").glob("state-*"))
    read, kept = load_motion_file(motion), read_state(state)
    assert read.state and kept.tensors
    assert not mapped(motion) and not mapped(state)


@pytest.mark.slow
def test_a_run_replaces_its_own_motion_only(tmp_path: Path) -> None:
    folder, target = tmp_path / "run", tmp_path / "m"
    first = run(new_training(2), folder, target, "mine")
    assert run_of(first) == "mine" and first.name == "m.safetensors"
    assert run(new_training(2), folder, target, "mine") == first
    file = load_motion_file(first)
    save_motion(first, file.state, MotionConfig(family="text16", prompt="of the user"))
    beside = run(new_training(2), folder, target, "mine")
    assert beside.name == "m-2.safetensors" and run_of(beside) == "mine"
    assert load_motion_file(first).config.prompt == "of the user"


def test_a_resumed_run_has_its_mark_and_a_new_one_another(tmp_path: Path) -> None:
    mark = mark_of(None)
    assert mark and mark != mark_of(None)
    run(new_training(1), tmp_path / "run", tmp_path / "m", mark)
    found = newest_state([tmp_path / "run"])
    assert found is not None and mark_of(found[1]) == mark


def locked(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Simulate files that are open in another program on Windows."""
    own = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name in names and Path(target).exists():
            raise PermissionError(13, "being used by another process")
        own(source, target)

    patch.setattr(os, "replace", replace)


def test_files_open_in_another_program_get_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, target = tmp_path / "run", tmp_path / "m"
    run(new_training(1), folder, target, "mine")
    state = folder / "state-step000001.safetensors"
    locked(monkeypatch, "m.safetensors", state.name, "loss.png")
    path = run(new_training(1), folder, target, "mine")
    assert path.name == "m-2.safetensors" and "m-2.safetensors" in caplog.text
    assert (folder / "state-step000001-2.safetensors").exists()
    found = newest_state([folder])
    assert found is not None and found[1].step == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_read_only_folder_is_still_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "link", refuse)
    state = new_training(1).motion.state_dict()
    with pytest.raises(MotionFileError, match="write permission"):
        save_motion(tmp_path / "m.safetensors", state, MotionConfig(family="text16"))


@pytest.mark.slow
def test_with_ema_a_run_whose_motion_cannot_be_written_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are raised after the disk refused the motion: as if the run had had them at once."""
    import lamp.training.outcome

    whole = new_training(6, ema=0.9)
    run(whole, tmp_path / "whole", tmp_path / "w", "w", every=0)

    def refuse(*_: Any, **__: Any) -> None:
        raise MotionFileError("full")

    with monkeypatch.context() as patch:
        patch.setattr(lamp.training.outcome, "save_motion", refuse)
        with pytest.raises(MotionFileError, match="state-step000003"):
            run(new_training(3, ema=0.9), tmp_path / "run", tmp_path / "m", "m", every=0)
    found = newest_state([tmp_path / "run"])
    assert found is not None
    resumed = new_training(6, ema=0.9)
    restore(resumed, found[1], WHO)
    path = run(resumed, tmp_path / "run", tmp_path / "m", "m", every=0)
    assert resumed.losses == whole.losses
    for ours, theirs in zip(resumed.trained, whole.trained, strict=True):
        assert torch.equal(ours, theirs)
    expected = load_motion_file(tmp_path / "w.safetensors").state
    learned = load_motion_file(path).state
    assert all(torch.equal(learned[name], tensor) for name, tensor in expected.items())
    # The file has the average, the run its own last parameters.
    name, parameter = next(iter(whole.motion.trained_parameters().items()))
    assert not torch.equal(learned[name].float(), parameter.detach().half().float())


@pytest.mark.parametrize("name", ["groupnorm", "precision", "optimizer", "rate_schedule"])
def test_a_setting_that_is_none_of_the_known_ones_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(LampError, match=f"{name} is 'foo'"):
        TrainConfig(**{name: "foo"})


def test_the_graph_cannot_name_itself_as_the_files_own_entry(node_classes: dict[str, Any]) -> None:
    import importlib
    from types import SimpleNamespace

    package = node_classes["LAMP_Trainer"].__module__.rpartition(".")[0]
    common = importlib.import_module(f"{package}.common")
    info = {"lamp.config": {}, RUN_KEY: "x", "modelspec.license": "x", "workflow": {}}
    hidden = SimpleNamespace(prompt={}, extra_pnginfo=info)
    assert set(common.workflow_metadata(hidden)) == {"prompt", "workflow"}


def test_a_motion_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    own_sync, own_link = os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append("sync"), own_sync(number))[1])
    monkeypatch.setattr(os, "link", lambda *names: (seen.append("name"), own_link(*names))[1])
    state = new_training(1).motion.state_dict()
    path = tmp_path / "m.safetensors"
    save_motion(path, state, MotionConfig(family="text16"), new=True)
    assert seen == ["sync", "name"]
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["lamp.format"] == "1"


def test_the_longest_name_is_saved_when_a_run_is_stopped(tmp_path: Path) -> None:
    """Disks allow 255 bytes, and 53 letters of Chinese take 159."""
    name = "马" * 53
    assert is_plain_name(name) and not is_plain_name(name + "马")
    outcome = Outcome(tmp_path / f"{name}_00001", ABOUT)
    path = outcome.write(new_training(1), "-step000123-stopped")
    assert load_motion_file(path).state
