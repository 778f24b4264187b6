"""A run that stops and goes on: bit for bit the same, refused by name, safe from kills."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.samples.small_training import small_training
from lamp.errors import LampError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.training.latents import LatentClips
from lamp.training.loop import StepReport, Training
from lamp.training.session import RunFolder, SaveConfig, newest_state, run_training, states
from lamp.training.state import StateError, read_state, restore, take_state, write_state

pytestmark = pytest.mark.slow  # many of them

WHO = {"base": "abc", "clips": "def"}
RICH: dict[str, Any] = {
    "ema": 0.9,
    "warmup": 2,
    "rate_schedule": "cosine",
    "min_snr": 5.0,
    "difference_loss": 0.5,
    "timestep_shift": 3.0,
    "accumulate": 2,
    "batch": 2,
    "hold_out": 1,
    "conv_rate": 2.0,
    "reference_width": 64,
}


def fresh(host: DiffusersHost, clips: LatentClips, **settings: Any) -> Training:
    return small_training(host, clips, **{"steps": 8, **settings})


def quiet(report: StepReport) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("settings", [{}, RICH], ids=["paper", "everything"])
def test_a_run_in_two_halves_equals_one_run_bit_for_bit(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, settings: dict[str, Any]
) -> None:
    straight = fresh(host, clips, **settings)
    run_training(straight, RunFolder(tmp_path / "one", WHO), SaveConfig(0, 1, 3), quiet)
    first = fresh(host, clips, **settings)
    for _ in range(3):
        first.advance()
    first.validate()
    write_state(tmp_path / "half.safetensors", take_state(first, WHO))
    second = fresh(host, clips, **settings)
    restore(second, read_state(tmp_path / "half.safetensors"), WHO)
    run_training(second, RunFolder(tmp_path / "two", WHO), SaveConfig(0, 1, 3), quiet)
    assert second.losses == straight.losses
    assert second.validation == straight.validation
    for name, tensor in straight.motion.state_dict().items():
        assert torch.equal(tensor, second.motion.state_dict()[name]), name


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_the_state_of_an_8_bit_optimiser_survives(
    host: DiffusersHost,
    clips: LatentClips,
    tmp_path: Path,
    library: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(library)
    monkeypatch.setitem(sys.modules, {"torchao": "bitsandbytes"}.get(library, "torchao"), None)
    straight, half = (fresh(host, clips, optimizer="adamw8bit", steps=4) for _ in range(2))
    for _ in range(4):
        straight.advance()
    for _ in range(2):
        half.advance()
    write_state(tmp_path / "state", take_state(half, WHO))
    rest = fresh(host, clips, optimizer="adamw8bit", steps=4)
    restore(rest, read_state(tmp_path / "state"), WHO)
    for _ in range(2):
        rest.advance()
    assert rest.losses == straight.losses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-2}, "learning_rate 0.01.* 0.02"),
        ({"seed": 7}, "seed 0.* 7"),
        ({"batch": 2}, "batch 1.* 2"),
        ({"rate_schedule": "cosine"}, "rate_schedule constant.* cosine"),
    ],
)
def test_a_setting_that_matters_is_refused_by_name(
    host: DiffusersHost, clips: LatentClips, change: dict[str, Any], message: str
) -> None:
    before = fresh(host, clips)
    before.advance()
    with pytest.raises(StateError, match=f"step 1 .*{message}"):
        restore(fresh(host, clips, **change), take_state(before, WHO), WHO)


@pytest.mark.parametrize("facts", [{"average_updates": 1e400}, {"validation": [[1, 10**400]]}])
def test_a_number_that_fits_nowhere_is_refused(
    host: DiffusersHost, clips: LatentClips, facts: dict[str, Any]
) -> None:
    before = fresh(host, clips)
    before.advance()
    state = take_state(before, WHO)
    state.facts.update(facts)
    with pytest.raises(StateError, match="state of step 1"):
        restore(fresh(host, clips), state, WHO)


def test_other_clips_are_refused_by_name(host: DiffusersHost, clips: LatentClips) -> None:
    before = fresh(host, clips)
    before.advance()
    with pytest.raises(StateError, match="clips"):
        restore(fresh(host, clips), take_state(before, WHO), {**WHO, "clips": "new"})


@pytest.mark.parametrize("name", ["VAE", "CLIP"])
def test_other_encodings_are_refused_and_rounded_ones_are_not(
    host: DiffusersHost, clips: LatentClips, name: str
) -> None:
    before = fresh(host, clips)
    before.advance()
    state = take_state(before, WHO)
    tensor = state.tensors[f"encoding.{name}"]
    for accepted in (tensor.bfloat16().float(), tensor):
        state.tensors[f"encoding.{name}"] = accepted
        restore(fresh(host, clips), state, WHO)
    for refused in (tensor * 1.2, tensor[..., :-1]):
        state.tensors[f"encoding.{name}"] = refused
        with pytest.raises(StateError, match=name):
            restore(fresh(host, clips), state, WHO)
    del state.tensors[f"encoding.{name}"]  # as in states of earlier versions
    restore(fresh(host, clips), state, WHO)


def test_more_steps_and_checkpointing_are_no_hindrance(
    host: DiffusersHost, clips: LatentClips
) -> None:
    before = fresh(host, clips)
    before.advance()
    longer = fresh(host, clips, steps=20, gradient_checkpointing=True)
    restore(longer, take_state(before, WHO), WHO)
    assert longer.step == 1
    cosine = fresh(host, clips, rate_schedule="cosine")
    cosine.advance()
    with pytest.raises(StateError, match="steps 8.* 20"):
        restore(fresh(host, clips, rate_schedule="cosine", steps=20), take_state(cosine, WHO), WHO)


class Cancelled(BaseException):
    """As the host's."""


def test_a_cancel_keeps_the_state_and_the_run_goes_on_from_it(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path
) -> None:
    def stop(report: StepReport) -> None:
        if report.step == 5:
            raise Cancelled

    straight = fresh(host, clips)
    run_training(straight, RunFolder(tmp_path / "one", WHO), SaveConfig(0, 1, 0), quiet)
    folder = RunFolder(tmp_path / "two", WHO)
    with pytest.raises(Cancelled):
        run_training(fresh(host, clips), folder, SaveConfig(100, 1, 0), stop)
    found = newest_state([folder.path])
    assert found is not None and found[1].step == 5
    again = fresh(host, clips)
    restore(again, found[1], WHO)
    folder.forget_after(again.step)
    run_training(again, folder, SaveConfig(0, 1, 0), quiet)
    assert again.losses == straight.losses
    log = [json.loads(line) for line in (folder.path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 9))
    assert [line["loss"] for line in log] == straight.losses


def test_only_the_newest_states_stay(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path
) -> None:
    run_training(fresh(host, clips), RunFolder(tmp_path, WHO, keep=2), SaveConfig(2, 2, 0), quiet)
    assert [path.name for path in states(tmp_path)] == [
        "state-step000006.safetensors",
        "state-step000008.safetensors",
    ]


@pytest.mark.parametrize("ages", [(3, 2, 1), (1, 2, 3), (2, 2, 2)])
def test_a_run_goes_on_from_its_last_step_whatever_the_clock_says(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, ages: tuple[int, ...]
) -> None:
    """The system's clock may be set back in the middle of a run."""
    run_training(fresh(host, clips), RunFolder(tmp_path, WHO, keep=3), SaveConfig(2, 3, 0), quiet)
    assert len(states(tmp_path)) == 3
    for age, path in zip(ages, states(tmp_path), strict=True):
        os.utime(path, (10**9 + age,) * 2)
    found = newest_state([tmp_path])
    assert found is not None and found[1].step == 8


def test_a_run_that_went_on_from_an_earlier_state_stays_on_its_way(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path, WHO, keep=9)
    run_training(fresh(host, clips), folder, SaveConfig(2, 9, 0), quiet)
    again = fresh(host, clips)
    restore(again, read_state(tmp_path / "state-step000002.safetensors"), WHO)
    folder.forget_after(2)

    def stop(report: StepReport) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(again, folder, SaveConfig(2, 9, 0), stop)
    found = newest_state([tmp_path])
    assert found is not None and found[1].step == 4


def test_out_of_memory_keeps_the_state_and_names_settings(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = fresh(host, clips, batch=2)
    learned: dict[str, torch.Tensor] = {}

    def burst(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def fill_memory(report: StepReport) -> None:
        learned.update({n: t.clone() for n, t in training.motion.state_dict().items()})
        monkeypatch.setattr(host, "predict", burst)

    with pytest.raises(LampError, match="memory in step 2.*state of step 1.*checkpointing.*resume"):
        run_training(training, RunFolder(tmp_path, WHO), SaveConfig(0, 1, 0), fill_memory)
    monkeypatch.undo()
    found = newest_state([tmp_path])
    assert found is not None and found[1].step == 1
    for name, tensor in learned.items():
        assert torch.equal(found[1].tensors[f"motion.{name}"], tensor), name
    straight, again = fresh(host, clips, batch=2), fresh(host, clips, batch=2)
    restore(again, found[1], WHO)
    again.advance()
    for _ in range(2):
        straight.advance()
    assert again.losses == straight.losses


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (1, [2]),
        (2, [2, 5]),
        (3, [1, 2, 5]),
        (4, [0, 1, 2, 5]),
        (5, [0, 1, 2, 5]),
        (9, [0, 1, 2, 5]),
    ],
)
def test_a_run_from_an_older_state_keeps_its_own_states(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, keep: int, kept: list[int]
) -> None:
    training = fresh(host, clips)
    for step in (0, 1, 5):
        (tmp_path / f"state-step{step:06}.safetensors").touch()
    for _ in range(2):
        training.advance()
    path = RunFolder(tmp_path, WHO, keep=keep).save_state(training)
    assert path.exists()
    assert [int(each.stem[-6:]) for each in states(tmp_path)] == kept


def test_a_damaged_newest_state_is_passed_over(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path
) -> None:
    run_training(fresh(host, clips), RunFolder(tmp_path, WHO, keep=2), SaveConfig(4, 2, 0), quiet)
    newest = states(tmp_path)[-1]
    whole = newest.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        newest.write_bytes(whole[:size])
        found = newest_state([tmp_path])
        assert found is not None and found[1].step == 4


def test_a_full_disk_says_so_and_leaves_the_older_state(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path, WHO)
    training = fresh(host, clips)
    training.advance()
    folder.save_state(training)
    training.advance()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StateError, match="No space left on device"):
        folder.save_state(training)
    assert [path.name for path in tmp_path.iterdir()] == ["state-step000001.safetensors"]


@pytest.mark.parametrize(("name", "value"), [("difference_loss", 0.5), ("timestep_shift", 3.0)])
def test_a_state_that_names_no_setting_was_trained_without_it(
    host: DiffusersHost, clips: LatentClips, name: str, value: float
) -> None:
    before = fresh(host, clips)
    before.advance()
    state = take_state(before, WHO)
    del state.facts["settings"][name]
    restore(fresh(host, clips), state, WHO)
    with pytest.raises(StateError, match=f"{name} [01].0, .* {value}"):
        restore(fresh(host, clips, **{name: value}), state, WHO)
