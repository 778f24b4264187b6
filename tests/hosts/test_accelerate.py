"""Several processes that train one motion, launched by accelerate: real processes, over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lamp.cli import DONE, main, train_run
from lamp.errors import LampError
from lamp.hosts.diffusers.accelerate import AccelerateGroup, WorkerFolder, is_launched
from lamp.motion_file.file import load_motion_file
from tests.helpers.toy_runs import write_config

pytest.importorskip("accelerate")
ROOT = Path(__file__).resolve().parents[2]
LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--main_process_port 0 --mixed_precision no --dynamo_backend no -m lamp train"
)


@contextmanager
def launched(config: Path, *changes: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher and its two processes, none of which outlives the block, whatever happens."""
    given = [part for change in ("recipe.device=cpu", *changes) for part in ("--set", change)]
    with subprocess.Popen(
        [sys.executable, *LAUNCH.split(), str(config), *given],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            end(process.pid)


def end(launcher: int) -> None:
    """Its processes are in sessions of their own: killing the launcher would leave them behind."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(launcher)
        for process in (*parent.children(recursive=True), parent):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    shared = ("recipe.accumulate=2", "recipe.hold_out=1")
    with launched(config, *shared, "output.sample_every=3", "output.name=two") as process:
        told, error = process.communicate()
    assert process.returncode == 0, error
    assert told.count("2 processes on cpu, 4 clips") == 1
    assert told.count("training 3 of 3") == told.count(".safetensors") == 1
    changes = (*shared, "recipe.batch=2", "output.name=one")
    assert main(["train", str(config), *(p for c in changes for p in ("--set", c))]) == DONE
    output = tmp_path / "output"
    assert {path.name for path in output.iterdir()} == {
        f"{name}_00001{ending}" for name in ("one", "two") for ending in ("", ".safetensors")
    }
    one, two = (losses(output / f"{name}_00001") for name in ("one", "two"))
    assert len(one) == 3
    assert two == pytest.approx(one, rel=1e-5)
    saved = [load_motion_file(output / f"{name}_00001.safetensors") for name in ("one", "two")]
    assert saved[0].config == saved[1].config
    for name, expected in saved[0].state.items():
        # Files hold fp16, whose steps are 1e-3 of a value.
        torch.testing.assert_close(saved[1].state[name], expected, rtol=2e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopping_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with launched(config, "recipe.steps=99999") as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("training 1 of 99999"):
                process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode != 0
    output = tmp_path / "output"
    (state,) = output.glob("right_00001/state-step*.safetensors")
    (motion,) = output.glob("*.safetensors")
    step = load_motion_file(motion).config.steps
    assert motion.name == f"right_00001-step{step:06}-stopped.safetensors"
    assert state.name == f"state-step{step:06}.safetensors"
    assert len(losses(output / "right_00001")) == step
    assert len(load_file(state)["losses"]) == step


DIFFERENT_CARDS = """
import torch
from lamp.cli import train_run
from lamp.errors import LampError
from lamp.hosts.diffusers.accelerate import AccelerateGroup

group = AccelerateGroup("cpu")
train_run.free_memory = lambda device: 10 * (group.rank + 1)
torch.cuda.is_bf16_supported = lambda including_emulation: group.rank == 1
device = torch.device("cuda")
assert train_run._free(device, group) == 10
assert train_run._precision(device, "auto", group) == "fp16"
assert train_run._precision(device, "bf16", group) == "bf16"
group.check_same("the same")
try:
    group.check_same(f"settings of {group.rank}")
except LampError as error:
    print(error)
group.leave()
"""


@pytest.mark.slow
def test_processes_on_different_cards_agree(tmp_path: Path) -> None:
    """Frames, size and precision follow the weakest one: gradients of other videos have no mean."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIFFERENT_CARDS],
            cwd=ROOT,
            env={**os.environ, **meeting, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    told = [process.communicate(timeout=120) for process in processes]
    for process, (said, error) in zip(processes, told, strict=True):
        assert process.returncode == 0, error
        assert "different" in said


@pytest.mark.parametrize(("generation", "precision"), [(7, "fp16"), (8, "bf16"), (9, "bf16")])
def test_emulated_bf16_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, generation: int, precision: str
) -> None:
    """PyTorch emulates it on cards before RTX 30: slowly, and without fused attention."""
    card = SimpleNamespace(major=generation)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert torch.cuda.is_bf16_supported()
    assert train_run._precision(torch.device("cuda"), "auto") == precision


def test_a_process_alone_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not is_launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_launched()


def test_a_launched_run_without_accelerate_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(LampError, match="pip install accelerate"):
        AccelerateGroup("cpu")


def test_a_bystander_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.samples.small_training import FRAMES, small_clips, small_host
    from lamp.method.architecture import map_unet
    from lamp.method.motion import Motion
    from lamp.training.loop import Training
    from lamp.training.recipe import TrainConfig
    from lamp.training.session import SaveConfig, run_training

    monkeypatch.chdir(tmp_path)
    host = small_host()
    config = TrainConfig(steps=1, frames=FRAMES)
    training = Training(host, Motion(map_unet(host.unet)).initialise(0), small_clips(), config)
    run_training(training, WorkerFolder(), SaveConfig(1, 1, 1), lambda report: None)
    assert list(tmp_path.iterdir()) == []
