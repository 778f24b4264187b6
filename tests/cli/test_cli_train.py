"""`python -m lamp train` on the toy base: from a TOML file to a motion file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file

from benchmarks.gpu.session import TINY
from lamp.cli import CANCELLED, DONE, FAILED, main, train_run
from lamp.cli.train_config import TABLES, read_settings, tomllib
from lamp.cli.train_run import choose_device
from lamp.clips.load import load_clips
from lamp.errors import LampError
from lamp.hosts.diffusers.models import load_image_model
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import base_hash, map_unet
from lamp.method.motion import Motion
from lamp.motion_file.file import load_motion_file
from lamp.toy.base import load_toy_base
from lamp.training import samples
from lamp.training.latents import cache_latents
from lamp.training.loop import Training, train
from lamp.training.recipe import TrainConfig
from tests.helpers.toy_runs import same_plans_once, write_clips, write_config

pytestmark = pytest.mark.slow  # many of them

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _same_plans_once() -> Iterator[None]:
    with same_plans_once():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, with everything that a run keeps."""
    config = write_config(tmp_path_factory.mktemp("run"))
    extra = ["sample_every=3", "save_every=2", "cache=cache"]
    assert run(config, *(f"output.{change}" for change in extra), "recipe.hold_out=1") == DONE
    return config.parent


def run(config: Path, *changes: str) -> int:
    return main(["train", str(config), *(part for c in changes for part in ("--set", c))])


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_it_learns_what_the_same_settings_teach_without_it(folder: Path) -> None:
    """The toy base used by hand, through diffusers' own functions."""
    toy = load_toy_base()
    clips = load_clips(folder / "clips", "moves right", 4, 32, 32)

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        each = [
            toy.vae.encode(pixel * 2 - 1).latent_dist
            for pixel in pixels.movedim(-1, 1).contiguous().split(1)
        ]
        return torch.cat([p.mean for p in each]), torch.cat([p.std for p in each])

    with torch.no_grad():
        latents = cache_latents(
            clips, encode, lambda texts: {text: toy.encode_text([text]) for text in texts}
        )
    motion = Motion(map_unet(toy.unet)).initialise(5)
    config = TrainConfig(steps=3, frames=4, learning_rate=2e-3, seed=5, hold_out=1)
    losses = train(DiffusersHost(toy.unet), motion, latents, config)
    assert [line["loss"] for line in log(folder / "output/right_00001")] == losses
    saved = load_file(folder / "output/right_00001.safetensors")
    expected = {name: value.half() for name, value in motion.state_dict().items()}
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)


@pytest.mark.slow
def test_a_model_that_predicts_velocity_is_trained_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, hosts = replace(load_image_model("toy"), v_prediction=True), []

    class Watched(Training):
        def __init__(self, host: Any, *args: Any, **options: Any) -> None:
            hosts.append(host)
            super().__init__(host, *args, **options)

    monkeypatch.setattr(train_run, "load_image_model", lambda *_: model)
    monkeypatch.setattr(train_run, "Training", Watched)
    assert run(write_config(tmp_path), "recipe.steps=1") == DONE
    assert [(host.unet, host.v_prediction) for host in hosts] == [(model.unet, True)]


def test_the_motion_file_tells_how_it_was_made(folder: Path) -> None:
    about = load_motion_file(folder / "output/right_00001.safetensors").config
    assert (about.frames, about.width, about.height, about.fps) == (4, 32, 32, 0.0)
    assert (about.steps, about.seed, about.learning_rate) == (3, 5, 2e-3)
    assert about.captions[0].endswith(" moves right") and len(about.captions) == 3
    assert about.base_model == "toy"
    assert about.base_hash == base_hash(load_toy_base().unet)


def test_the_runs_folder_holds_states_samples_log_and_loss(folder: Path) -> None:
    output = folder / "output/right_00001"
    assert {path.name for path in output.iterdir()} - {"tensorboard"} == {
        ".lock",
        "log.jsonl",
        "loss.png",
        "sample-step000003.webp",
        "state-step000002.safetensors",
        "state-step000003.safetensors",
    }
    assert "held_out_loss" in log(output)[-1]
    with Image.open(output / "sample-step000003.webp") as sample:
        assert sample.size == (32, 32) and sample.n_frames == 4  # type: ignore[attr-defined]
        sample.load()
        assert sample.info["duration"] == 125  # ms; the clips have 8 frames a second
    assert len(list((folder / "cache").glob("posterior-*"))) == 3


@pytest.mark.slow
def test_a_resumed_run_keeps_the_precision_that_was_chosen_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another card, or another version, may choose another one."""
    config = write_config(tmp_path)
    assert run(config, "recipe.steps=1", "output.save_every=1") == DONE
    monkeypatch.setattr(train_run, "_precision", lambda *_: "bf16")
    assert run(config, "recipe.steps=2", "output.resume=latest") == DONE
    (motion,) = (tmp_path / "output").glob("*.safetensors")
    metadata = load_motion_file(motion).metadata
    assert json.loads(metadata["lamp.training"])["precision"] == "fp32"


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_folder_as_if_it_had_never_stopped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    assert run(config, "recipe.steps=2", "output.save_every=1", "output.resume=latest") == DONE
    assert "no earlier run" in capsys.readouterr().out
    assert run(config, "recipe.steps=3", "output.resume=latest") == DONE
    told = capsys.readouterr().out
    assert "step 2 in" in told and "no earlier run" not in told
    assert run(config, "output.name=straight") == DONE
    output = tmp_path / "output"
    assert {path.name for path in output.glob("*.safetensors")} == {
        "right_00001.safetensors",
        "straight_00001.safetensors",
    }
    resumed, straight = (
        load_file(output / f"{n}_00001.safetensors") for n in ("right", "straight")
    )
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert [line["step"] for line in log(output / "right_00001")] == [1, 2, 3]


def test_a_resume_with_another_setting_is_refused_by_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = folder / "output/right_00001/state-step000002.safetensors"
    changes = (f"output.resume={state}", "recipe.hold_out=1", "recipe.learning_rate=1e-3")
    assert run(folder / "run.toml", *changes) == FAILED
    error = capsys.readouterr().err
    assert "learning_rate 0.002" in error and "0.001" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.frames=9",), "'clip0' has 8 frames"),
        (("data.prompt=a horse runs",), "the toy model does not know the word 'horse'"),
        (("recipe.hold_out=3",), "hold_out is 3"),
        (("recipe.device=cuda",), "device is cuda, but PyTorch finds only"),
    ],
)
def test_what_cannot_be_trained_is_a_sentence(
    folder: Path, changes: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = set(folder.rglob("*"))
    assert run(folder / "run.toml", *changes) == FAILED
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert set(folder.rglob("*")) == before


@pytest.mark.slow
def test_half_precision_keeps_the_learned_parts_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "sample_clip", partial(samples.sample_clip, steps=2))
    # A narrow UNet, since a CPU may take 35 times as long in bf16.
    unet = UNet2DConditionModel.from_config(TINY.config).requires_grad_(False).eval()
    model = replace(load_image_model("toy"), unet=unet)
    monkeypatch.setattr(train_run, "load_image_model", lambda *_: model)
    config = write_config(tmp_path)
    changes = ("recipe.precision=bf16", "recipe.checkpointing=on", "recipe.steps=1")
    outputs = ("output.save_every=1", "output.sample_every=1")
    assert run(config, "data.frames=2", *changes, *outputs) == DONE
    state = load_file(tmp_path / "output/right_00001/state-step000001.safetensors")
    kinds = {tensor.dtype for name, tensor in state.items() if name.startswith("motion.")}
    assert kinds == {torch.float32}


@pytest.mark.slow
def test_interrupting_keeps_what_was_learned(tmp_path: Path) -> None:
    """A real process and a real signal."""
    config = write_config(tmp_path)
    command = [sys.executable, "-m", "lamp", "train", str(config), "--set", "recipe.steps=99999"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("training 1 of 99999"):
                process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == CANCELLED
    assert len(error.strip().splitlines()) == 1 and "step" in error
    output = tmp_path / "output"
    (state,) = output.glob("right_00001/state-step*.safetensors")
    step = re.sub(r"\D", "", state.stem)
    assert load_motion_file(
        output / f"right_00001-step{step}-stopped.safetensors"
    ).config.steps == int(step)
    assert run(config, f"recipe.steps={int(step) + 1}", "output.resume=latest") == DONE
    assert load_motion_file(output / "right_00001.safetensors").config.steps == int(step) + 1


def test_the_example_in_the_docs_trains_the_toy_base(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips")
    changes = (
        "base.path=toy",
        f"data.folder={tmp_path / 'clips'}",
        "data.prompt=moves right",
        "data.frames=4",
        "data.width=32",
        "data.height=32",
        "recipe.steps=2",
        f"output.folder={tmp_path / 'output'}",
        f"output.cache={tmp_path / 'cache'}",
        "output.sample_every=0",
    )
    assert run(ROOT / "docs/train.toml", *changes) == DONE
    assert (tmp_path / "output/horse_run_00001.safetensors").is_file()


def test_the_example_in_the_docs_shows_every_setting_with_its_default() -> None:
    text = (ROOT / "docs/train.toml").read_text(encoding="utf-8")
    every = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M)
    tables = tomllib.loads(every)
    for table, keys in TABLES.items():
        assert set(tables[table]) == set(keys.model_fields), table
    shown = set(re.findall(r"^# (\w+) = ", text, flags=re.M)) - {"tokenizer", "fps"}
    defaults = {**_defaults(TrainConfig), "precision": "auto", "checkpointing": "auto"}
    defaults["card"] = "none"
    defaults["betas"] = list(TrainConfig.betas)  # as TOML has it
    for name in shown & set(tables["recipe"]):
        assert tables["recipe"][name] == defaults.get(name, "auto"), name


def test_every_default_may_be_written_out(tmp_path: Path) -> None:
    text = (ROOT / "docs/train.toml").read_text(encoding="utf-8")
    every = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.M)
    every = re.sub(r"^(tokenizer|fps) = .*$", "", every, flags=re.M)
    for name in ("base", "data", "output"):
        (tmp_path / name).mkdir()
    config = tmp_path / "run.toml"
    config.write_text(every, encoding="utf-8")
    paths = ["base.path=base", "data.folder=data", "output.folder=output"]
    assert read_settings(config, paths).choices.precision == "auto"
    with pytest.raises(LampError, match="precision"):
        read_settings(config, [*paths, "recipe.precision=fp8"])


def _defaults(kind: Any) -> dict[str, Any]:
    return {name: field.default for name, field in kind.__dataclass_fields__.items()}


def test_a_device_that_is_missing_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    if not torch.backends.mps.is_available():
        with pytest.raises(LampError, match="device is mps, but PyTorch finds only"):
            choose_device("mps")
