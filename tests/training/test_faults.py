"""A training whose disk or memory fails: a sentence, nothing half, and what was learned is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.small_training import FRAMES
from lamp.errors import LampError, MotionFileError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.motion_file.file import load_motion_file
from lamp.training.latents import LatentClips
from lamp.training.loop import Training
from lamp.training.outcome import Outcome, train_to_file
from lamp.training.recipe import TrainConfig
from lamp.training.session import RunFolder, SaveConfig, newest_state, states
from lamp.training.state import read_state, restore

pytestmark = pytest.mark.slow  # many of them

ROOT = Path(__file__).resolve().parents[2]
WHO = {"base": "abc", "clips": "def"}
STEPS = 3


Start = Callable[..., Training]


@pytest.fixture
def start(host: DiffusersHost, clips: LatentClips) -> Start:
    def begin(state: Path | None = None) -> Training:
        config = TrainConfig(steps=STEPS, frames=FRAMES, learning_rate=1e-2)
        training = Training(host, Motion(map_unet(host.unet)).initialise(0), clips, config)
        if state is not None:
            restore(training, read_state(state), WHO)
        return training

    return begin


def train(training: Training, folder: Path, every: int = 0, **options: Any) -> Path:
    outcome = Outcome(folder / "motions" / "m", {"family": "text16"})
    run = RunFolder(folder / "run", WHO)
    return train_to_file(
        training, run, SaveConfig(every, 2, every), outcome, lambda _: None, **options
    )


def check_whole(folder: Path) -> None:
    """Whatever is there can be read, and nothing was left half-way."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".part"]
    for path in files:
        if path.suffix == ".safetensors":
            read_state(path) if path.name.startswith("state") else load_motion_file(path)


# --- disk -----------------------------------------------------------------------------------------


def test_a_motion_that_cannot_be_written_is_kept_as_a_state(start: Start, tmp_path: Path) -> None:
    straight = load_motion_file(train(start(), tmp_path / "straight")).state
    (tmp_path / "motions").write_text("a file in the place of the folder")
    with pytest.raises(MotionFileError, match=r"run/state-step000003.safetensors: resume from it"):
        train(start(), tmp_path)
    (tmp_path / "motions").unlink()
    [state] = states(tmp_path / "run")
    resumed = load_motion_file(train(start(state), tmp_path)).state
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())
    check_whole(tmp_path)


def test_log_and_plot_that_cannot_be_written_stop_nothing(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("log.jsonl", "loss.png"):
        (tmp_path / "run" / name).mkdir(parents=True)
    said: list[str] = []
    path = train(start(), tmp_path, say=said.append)
    assert load_motion_file(path).config.steps == STEPS
    assert [text for text in caplog.messages if "log" in text and "run" in text]
    assert len(caplog.messages) == 1 and "loss.png" in said[0]
    check_whole(tmp_path)


def test_a_stop_that_cannot_be_written_stays_a_stop(start: Start, tmp_path: Path) -> None:
    def cancel(_: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "motions").write_text("a file in the place of the folder")
    said: list[str] = []
    outcome = Outcome(tmp_path / "motions" / "m", {"family": "text16"})
    run = RunFolder(tmp_path / "run", WHO)
    with pytest.raises(KeyboardInterrupt):
        train_to_file(start(), run, SaveConfig(0, 2, 0), outcome, cancel, say=said.append)
    assert "could not be written" in said[0]
    found = newest_state([tmp_path / "run"])
    assert found is not None and found[1].step == 1


@pytest.mark.parametrize(
    "text", ['{"step": 1, "loss"', "3", "null", '{"loss": 1}', '{"step": "1"}', "\xff\xfe"]
)
def test_a_damaged_log_is_no_hindrance_to_a_resume(tmp_path: Path, text: str) -> None:
    good = [json.dumps({"step": step, "loss": 0.5}) for step in (1, 2, 3)]
    path = tmp_path / "log.jsonl"
    path.write_bytes("\n".join([good[0], text, *good[1:]]).encode("latin-1"))
    RunFolder(tmp_path, WHO).forget_after(2)
    assert path.read_text().splitlines() == good[:2]


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_a_disk_that_fills_up_at_any_write(tmp_path: Path) -> None:
    """The system itself breaks a write off, in log, picture, state or motion."""
    written = {"101": 0, "40000": 0, "2000001": 1}
    command = [sys.executable, "-m", "tests.helpers.full_disk", str(tmp_path), *written]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True
    )
    ended = json.loads(out.stdout)
    assert ended.keys() == written.keys()
    for limit, count in written.items():
        refused = ended[limit]["refused"]
        assert "could not be written" in refused and "Free some disk space" in refused
        check_whole(tmp_path / limit)
        assert len(list((tmp_path / limit).glob("*.safetensors"))) == count


# --- memory ---------------------------------------------------------------------------------------


class _NoRoom(torch.autograd.Function):
    """Runs out of memory on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("where", ["forward", "backward", "sample"])
def test_out_of_memory_is_a_sentence_and_loses_nothing(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    straight = load_motion_file(train(start(), tmp_path / "straight")).state
    training = start()
    predict, calls = training.host.predict, []

    def short(*given: Any) -> Tensor:
        calls.append(1)
        out = predict(*given)
        if len(calls) == 3 and where == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return _NoRoom.apply(out) if len(calls) == 3 and where == "backward" else out

    def sample(training: Training) -> None:
        if where == "sample" and training.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    # a sample needs room of its own beside the training, as the VAE does that decodes it
    monkeypatch.setattr(DiffusersHost, "predict", lambda _, *given: short(*given))
    said: list[str] = []
    every = int(where == "sample")
    place = "sample of step 2" if where == "sample" else "in step 3"
    with pytest.raises(LampError, match=f"memory .*{place}.*state of step 2"):
        train(training, tmp_path, every, sample=sample, say=said.append)
    assert said == ["stopped after step 2, saved as m-step000002-stopped.safetensors"]
    check_whole(tmp_path)
    monkeypatch.undo()
    resumed = load_motion_file(train(start(states(tmp_path / "run")[-1]), tmp_path)).state
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


# --- the same again -------------------------------------------------------------------------------


def test_deterministic_mode_has_every_operation(start: Start, tmp_path: Path) -> None:
    """PyTorch refuses operations there that may differ from run to run."""
    usual = load_motion_file(train(start(), tmp_path / "usual")).state
    torch.use_deterministic_algorithms(True)
    try:
        runs = [load_motion_file(train(start(), tmp_path / name)).state for name in ("a", "b")]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs:
        assert all(torch.equal(run[name], tensor) for name, tensor in usual.items())
