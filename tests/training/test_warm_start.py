"""Training from the weights of a motion file: what carries over, what is refused, what is noted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.motion import main as benchmark
from benchmarks.samples.small_training import FRAMES, small_host, small_training
from lamp.cli import DONE, FAILED, main, train_run
from lamp.errors import IncompatibleModelError, LampError, MotionFileError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.motion_file.describe import describe_motion
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion
from lamp.motion_file.provenance import LICENSE_KEY, save_motion_file, starts
from lamp.training.latents import LatentClips
from lamp.training.loop import Training
from lamp.training.low_rank import factors, whole_state
from lamp.training.outcome import Outcome
from lamp.training.state import StateError, read_state, restore, take_state, write_state
from tests.helpers.toy_runs import write_clips, write_config
from tests.helpers.trainer_runs import SETTINGS, TrainerRuns

pytestmark = pytest.mark.slow  # many of them

WHO = {"base": "abc", "clips": "def"}
ABOUT = {"family": "text16", "frames": FRAMES}


def begin(host: DiffusersHost, clips: LatentClips, **settings: Any) -> Training:
    return small_training(host, clips, **{"steps": 6, "hold_out": 1, **settings})


def learned(host: DiffusersHost, clips: LatentClips, path: Path, **settings: Any) -> Training:
    """Three steps, and their motion in a file."""
    training = begin(host, clips, **settings)
    for _ in range(3):
        training.advance()
    Outcome(path.with_suffix(""), ABOUT).write(training)
    return training


@pytest.fixture(scope="module")
def first(host: DiffusersHost, clips: LatentClips, tmp_path_factory: Any) -> tuple[Training, Path]:
    path = tmp_path_factory.mktemp("first") / "first.safetensors"
    return learned(host, clips, path), path


def same(one: dict[str, Tensor], other: dict[str, Tensor], **how: Any) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor.float(), other[name].float(), **how)


# --- what carries over ---------------------------------------------------------------------------


def test_it_starts_with_the_weights_of_the_file_at_step_0(
    host: DiffusersHost, clips: LatentClips, first: tuple[Training, Path]
) -> None:
    before, path = first
    training = begin(host, clips, start_from=str(path), seed=4)
    same(training.motion.state_dict(), load_file(path), rtol=0, atol=0)
    assert training.step == 0 and not training.optimizer.state
    # The held-out loss goes on where it was; a new motion's is further away.
    wanted = before.validate()
    again = begin(host, clips, start_from=str(path)).validate()
    assert again == pytest.approx(wanted, rel=1e-3)
    assert begin(host, clips).validate() != pytest.approx(wanted, rel=1e-3)


def test_it_moves_away_from_there(
    host: DiffusersHost, clips: LatentClips, first: tuple[Training, Path]
) -> None:
    training = begin(host, clips, start_from=str(first[1]))
    training.advance()
    before = load_file(first[1])
    moved = [n for n, p in training.motion.trained_parameters().items() if (p != before[n]).any()]
    assert len(moved) == len(training.trained)


def test_another_checkpoint_of_the_family_is_fine(
    clips: LatentClips, first: tuple[Training, Path]
) -> None:
    other = small_host()
    for parameter in other.unet.parameters():
        parameter.mul_(0.9)
    training = begin(other, clips, start_from=str(first[1]))
    same(training.motion.state_dict(), load_file(first[1]), rtol=0, atol=0)


def test_factors_go_on_as_factors(host: DiffusersHost, clips: LatentClips, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    learned(host, clips, path, rank=4)
    wanted = load_motion_file(path).state
    for rank in (4, 6):
        training = begin(host, clips, start_from=str(path), rank=rank)
        found = whole_state(training.motion.state_dict())
        # Weak matrices of the file are quantized; the factors are exact to fp32.
        same(found, wanted, rtol=1e-3, atol=1e-4)  # the file's products are rounded to fp16
        up, down = next(iter(factors(training.motion.state_dict()).values()))
        assert len(up) == len(down) == rank
        training.advance()
    fresh = factors(begin(host, clips, rank=4).motion.state_dict())
    started = factors(begin(host, clips, start_from=str(path), rank=4).motion.state_dict())
    for name, (_, down) in started.items():
        assert down.std().item() == pytest.approx(fresh[name][1].std().item(), rel=0.5), name


def test_a_compact_file_starts_a_full_training(
    host: DiffusersHost, clips: LatentClips, tmp_path: Path
) -> None:
    path = tmp_path / "small.safetensors"
    learned(host, clips, path, rank=4)
    training = begin(host, clips, start_from=str(path))
    same(training.motion.state_dict(), load_motion_file(path).state, rtol=0, atol=0)


# --- what is refused -----------------------------------------------------------------------------


def test_a_rank_below_that_of_the_file(
    host: DiffusersHost, clips: LatentClips, first: tuple[Training, Path]
) -> None:
    with pytest.raises(LampError, match=r"first\.safetensors.* 3"):
        begin(host, clips, start_from=str(first[1]), rank=3)


def test_another_groupnorm(
    host: DiffusersHost, clips: LatentClips, first: tuple[Training, Path]
) -> None:
    with pytest.raises(IncompatibleModelError, match="pooled.*frame"):
        begin(host, clips, start_from=str(first[1]), groupnorm="frame")


@pytest.mark.parametrize("change", ["shape", "missing", "family"])
def test_a_motion_for_another_model(
    host: DiffusersHost,
    clips: LatentClips,
    first: tuple[Training, Path],
    tmp_path: Path,
    change: str,
) -> None:
    file = load_motion_file(first[1])
    name = next(iter(file.state))
    state, config = dict(file.state), file.config
    if change == "shape":
        state[name] = state[name][:-1].clone()
    elif change == "missing":
        del state[name]
    else:
        config = replace(config, family="sd2")
    path = save_motion(tmp_path / "other.safetensors", state, config)
    error = IncompatibleModelError if change == "family" else MotionFileError
    with pytest.raises(error, match="SD 2" if change == "family" else name):
        begin(host, clips, start_from=str(path))


def test_a_file_that_is_not_there(host: DiffusersHost, clips: LatentClips, tmp_path: Path) -> None:
    with pytest.raises(MotionFileError, match="gone"):
        begin(host, clips, start_from=str(tmp_path / "gone.safetensors"))


# --- what is noted -------------------------------------------------------------------------------


def licensed(path: Path, to: Path) -> Path:
    file = load_motion_file(path)
    return save_motion_file(to, replace(file, metadata={LICENSE_KEY: "CC-BY-NC-4.0"}))


def test_the_file_names_every_motion_before_it_and_keeps_the_licence(
    host: DiffusersHost, clips: LatentClips, first: tuple[Training, Path], tmp_path: Path
) -> None:
    one = licensed(first[1], tmp_path / "one.safetensors")
    learned(host, clips, tmp_path / "two.safetensors", start_from=str(one))
    two = tmp_path / "two.safetensors"
    training = learned(host, clips, tmp_path / "three.safetensors", start_from=str(two))
    three = load_motion_file(tmp_path / "three.safetensors")
    saved = load_motion_file(save_motion_file(tmp_path / "again.safetensors", three))
    shown = Outcome(tmp_path / "three", ABOUT).file(training)  # what the node passes on
    for file in (three, saved, shown):
        assert starts(file.metadata) == "two.safetensors (3 steps), one.safetensors (3 steps)"
        assert file.metadata[LICENSE_KEY] == "CC-BY-NC-4.0"
        text = describe_motion(file)
        assert "two.safetensors" in text and "Training: 3 steps" in text
    assert "Started" not in describe_motion(load_motion_file(first[1]))


@pytest.mark.parametrize("text", ["{", "3", '[{"name": 3, "steps": 1}]', "[[]]", "[" * 5000])
def test_a_damaged_entry_is_named_and_stops_nothing(text: str, first: tuple[Any, Path]) -> None:
    file = load_motion_file(first[1])
    broken = MotionFile(file.state, file.config, {"lamp.start": text}, "broken.safetensors")
    assert "not readable" in describe_motion(broken)


def test_a_resumed_run_keeps_the_note_and_needs_no_file(
    host: DiffusersHost, clips: LatentClips, first: tuple[Training, Path], tmp_path: Path
) -> None:
    begun = learned(host, clips, tmp_path / "a.safetensors", start_from=str(first[1]))
    write_state(tmp_path / "state.safetensors", take_state(begun, WHO))
    state = read_state(tmp_path / "state.safetensors")
    resumed = begin(host, clips)
    restore(resumed, state, WHO)
    Outcome(tmp_path / "b", ABOUT).write(resumed)
    assert "first.safetensors" in starts(load_motion_file(tmp_path / "b.safetensors").metadata)
    named = begin(host, clips, start_from=str(first[1]))
    restore(named, state, WHO)


def test_a_resumed_run_refuses_another_start(
    host: DiffusersHost, clips: LatentClips, first: tuple[Training, Path], tmp_path: Path
) -> None:
    other = licensed(first[1], tmp_path / "other.safetensors")
    named = begin(host, clips, start_from=str(other))
    for settings in ({}, {"start_from": str(first[1])}):
        before = begin(host, clips, **settings)
        before.advance()
        with pytest.raises(StateError, match=r"other\.safetensors"):
            restore(named, take_state(before, WHO), WHO)


# --- where it is chosen --------------------------------------------------------------------------


def run(config: Path, *changes: str) -> int:
    return main(["train", str(config), *(part for c in changes for part in ("--set", c))])


def test_the_command_line_goes_on_with_more_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config = write_config(tmp_path)
    assert run(config) == DONE
    more = write_clips(tmp_path / "more", 4)
    assert run(config, f"data.folder={more}", "output.resume=latest") == FAILED
    assert "start_from" in capsys.readouterr().err  # the way that is open
    start = "recipe.start_from=output/right_00001.safetensors"  # relative to the config file
    assert run(config, f"data.folder={more}", start) == DONE
    found = load_motion_file(tmp_path / "output/right_00002.safetensors")
    assert "right_00001.safetensors" in starts(found.metadata)
    monkeypatch.setattr(train_run, "load_clips", lambda *given, **more: pytest.fail("too late"))
    assert run(config, "recipe.start_from=gone.safetensors") == FAILED
    assert "gone.safetensors" in capsys.readouterr().err


def test_the_node_starts_from_a_file_of_the_motion_folder(
    node_classes: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = TrainerRuns(node_classes, toy, tmp_path, monkeypatch)
    before = runs.train("run")
    monkeypatch.setitem(SETTINGS, "start_from", "run_00001.safetensors")
    after = runs.train("run")
    assert any((before[name] != after[name]).any() for name in before)
    found = load_motion_file(tmp_path / "motions/run_00002.safetensors")
    assert starts(found.metadata) == "run_00001.safetensors (2 steps)"
    monkeypatch.setitem(SETTINGS, "start_from", "gone.safetensors")
    with pytest.raises(LampError, match=r"gone\.safetensors"):
        runs.train("run")


def test_the_benchmark_starts_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["motion", "--start-from", str(tmp_path / "gone")])
    with pytest.raises(MotionFileError, match="gone"):
        benchmark()
