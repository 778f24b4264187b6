"""Training in the real server: train, save, sample, cancel, resume, errors."""

from __future__ import annotations

import base64
import json
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from scripts.server.server import ComfyServer

Graph = dict[str, dict[str, Any]]
STEPS = 3


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def training(file: str, own_recipe: dict[str, Any] | None = None, **changes: Any) -> Graph:
    settings = {
        "recipe": "paper",
        "steps": STEPS,
        "batch": 1,
        "accumulate": 1,
        "seed": 5,
        "precision": "auto",
        "checkpointing": "off",
        "optimizer": "adamw",
        "hold_out": 0,
        "name": file,
        "resume": "none",
        "save_every": 0,
        "keep_states": 2,
        "sample_every": 0,
        "sample_cfg": 1.0,
        "own_recipe": ["recipe", 0],
        **changes,
    }
    recipe = {
        "learning_rate": 2e-3,
        "conv_rate": 1.0,
        "attention_rate": 1.0,
        "query_rate": 1.0,
        "reference_width": 0,
        "rate_schedule": "constant",
        "warmup": 0,
        "weight_decay": 0.01,
        "ema": 0.0,
        "min_snr": 0.0,
        "groupnorm": "pooled",
        **(own_recipe or {}),
    }
    return {
        "base": node("LAMP_LoadToyBase"),
        "world": node("LAMP_ToyClips", seed=0, clips=4),
        "clips": clips(images=["world", 0], prompt=["world", 1]),
        "recipe": node("LAMP_TrainingRecipe", **recipe),
        "train": node(
            "LAMP_Trainer",
            model=["base", 0],
            clip=["base", 1],
            vae=["base", 2],
            clips=["clips", 0],
            **settings,
        ),
    }


def clips(**changes: Any) -> dict[str, Any]:
    settings = {
        "folder": "(from images)",
        "prompt": "",
        "frames": 8,
        "width": 32,
        "height": 32,
        "fps": 0.0,
        "stride": 1,
        "fit": "crop",
        "short_clips": "error",
        "flip": False,
        **changes,
    }
    return node("LAMP_TrainingClips", **settings)


def generating(graph: Graph) -> Graph:
    return {
        **graph,
        "object": node("LAMP_ToyObject", seed=0, unseen="hard", number=1),
        "first": node(
            "LAMP_FirstFrameCondition",
            vae=["base", 2],
            image=["object", 0],
            width=32,
            height=32,
            frames=8,
            fit="crop",
        ),
        "positive": node("CLIPTextEncode", clip=["base", 1], text=["object", 1]),
        "negative": node("CLIPTextEncode", clip=["base", 1], text=""),
        "sample": node(
            "LAMP_KSampler",
            model=["train", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent=["first", 0],
            seed=7,
            steps=3,
            cfg=2.0,
            sampler_name="ddim",
            scheduler="ddim (official)",
            adain="paper",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "score": node("LAMP_ToyScore", images=["decode", 0], case=["object", 3]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="frames"),
    }


def pictures(server: ComfyServer, files: list[dict[str, str]], folder: Path) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    frames = []
    for file in files:
        path = folder / file["filename"]
        path.write_bytes(server.view(file))
        frames.append(np.asarray(Image.open(path).convert("RGB")))
    return np.stack(frames)


def motions(server: ComfyServer) -> list[str]:
    return server.models("lamp_motion")


def test_train_and_generate_twice_with_equal_results(server: ComfyServer, tmp_path: Path) -> None:
    graph = generating(training("twice"))
    runs = []
    for number in range(2):
        server.free()  # clears cached outputs, so that everything runs again
        result = server.queue(graph).check()
        assert "train" in result.executed
        runs.append(pictures(server, result.files("save"), tmp_path / str(number)))
        assert ("train", STEPS, STEPS) in result.progress
        assert any(f"step {STEPS} of {STEPS}" in text for text in result.texts["train"])
        assert "IoU" in str(result.outputs["score"])
    assert runs[0].shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(runs[0], runs[1])
    saved = [name for name in motions(server) if name.startswith("twice")]
    assert saved == ["twice_00001.safetensors", "twice_00002.safetensors"]


def test_the_motion_file_records_its_training(server: ComfyServer) -> None:
    graph = training("told", seed=11)
    graph["clips"]["inputs"]["prompt"] = "moves right"
    server.queue(graph).check()
    with safe_open(server.base / "models/lamp_motion/told_00001.safetensors", "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["lamp.config"])
    assert config["frames"] == 8
    assert config["steps"] == STEPS
    assert config["seed"] == 11
    assert config["prompt"] == metadata["modelspec.trigger_phrase"] == "moves right"
    assert config["base_model"] == "LAMP_LoadToyBase"
    assert len(config["base_hash"]) == 64
    assert json.loads(metadata["prompt"])["train"]["class_type"] == "LAMP_Trainer"


def test_a_low_rank_motion_is_small_and_resumes(server: ComfyServer, tmp_path: Path) -> None:
    """The executor runs nodes in inference mode, in which factors could not be trained."""
    changes: dict[str, Any] = {"steps": 2, "rank": 4, "save_every": 1, "sample_every": 2}
    result = server.queue(generating(training("factors", **changes))).check()
    assert pictures(server, result.files("save"), tmp_path / "videos").shape == (8, 32, 32, 3)
    path = server.base / "models/lamp_motion/factors_00001.safetensors"
    with safe_open(path, "pt") as file:
        forms = json.loads(zlib.decompress(base64.b64decode(file.metadata()["lamp.rank"])))
        assert all(form[0] == [4, 0, 0, 0] for form in forms.values())
    changes |= {"steps": 3, "resume": "latest", "sample_every": 0}
    server.queue(training("factors", **changes)).check()
    log = server.base / "output/lamp_training/factors_00001/log.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]


def test_cancelling_saves_the_motion_and_the_server_continues(server: ComfyServer) -> None:
    pressed = []

    def cancel(event: dict[str, Any]) -> None:
        # The text names every step; newer hosts skip some updates of the bar.
        if event["type"] == "progress_text" and "step 2 of" in event["data"]["text"]:
            pressed.append(server.interrupt())

    result = server.queue(training("stopped", steps=100_000), cancel)
    assert pressed
    assert result.status == "interrupted"
    kept = [name for name in motions(server) if name.startswith("stopped")]
    assert len(kept) == 1
    assert "-step" in kept[0] and kept[0].endswith("-stopped.safetensors")
    server.queue(training("after")).check()
    assert "after_00001.safetensors" in motions(server)


def test_two_queued_trainings_write_different_files(server: ComfyServer) -> None:
    # Different settings, or the second result would come from the host's cache.
    graphs = [training("pair", steps=2, keep_states=count) for count in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        for result in threads.map(server.queue, graphs):
            result.check()
    made = [name for name in motions(server) if name.startswith("pair")]
    assert made == ["pair_00001.safetensors", "pair_00002.safetensors"]
    one, other = (load_file(server.base / "models/lamp_motion" / name) for name in made)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_array_equal(other[name], tensor, name)
    for number in (1, 2):
        log = server.base / f"output/lamp_training/pair_0000{number}/log.jsonl"
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]


def test_the_plain_model_is_unchanged_by_training(server: ComfyServer, tmp_path: Path) -> None:
    def plain(graph: Graph) -> Graph:
        return {
            "base": node("LAMP_LoadToyBase"),
            "text": node("CLIPTextEncode", clip=["base", 1], text="a red star"),
            "none": node("CLIPTextEncode", clip=["base", 1], text=""),
            "latent": node("EmptyLatentImage", width=128, height=128, batch_size=2),
            "sample": node(
                "KSampler",
                model=["base", 0],
                positive=["text", 0],
                negative=["none", 0],
                latent_image=["latent", 0],
                seed=1,
                steps=3,
                cfg=3.0,
                sampler_name="euler",
                scheduler="normal",
                denoise=1.0,
            ),
            "decode": node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
            "save": node("SaveImage", images=["decode", 0], filename_prefix="plain"),
            **graph,
        }

    server.free()
    before = server.queue(plain({})).check()
    trained = {**training("beside"), "base": node("LAMP_LoadToyBase")}
    graph = plain(trained)
    graph["sample"]["inputs"]["seed"] = 2  # otherwise the result comes from the cache
    server.queue(graph).check()
    graph["sample"]["inputs"]["seed"] = 1
    after = server.queue(graph).check()
    assert "sample" in after.executed
    np.testing.assert_array_equal(
        pictures(server, before.files("save"), tmp_path / "before"),
        pictures(server, after.files("save"), tmp_path / "after"),
    )


def error(server: ComfyServer, graph: Graph) -> str:
    result = server.queue(graph)
    assert result.error is not None, result.status
    return result.error.message


def test_an_empty_folder_is_refused(server: ComfyServer) -> None:
    (server.base / "input" / "nothing here").mkdir(exist_ok=True)
    graph = training("empty")
    graph["clips"] = clips(folder="input/nothing here")
    message = error(server, graph)
    assert message.startswith("LAMP Training Clips: ") and "nothing here" in message


def test_an_unreadable_clip_is_refused(server: ComfyServer) -> None:
    folder = server.base / "input" / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "broken 马.mp4").write_bytes(b"no film")
    graph = training("damaged")
    graph["clips"] = clips(folder="input/damaged")
    assert "broken 马.mp4" in error(server, graph)


def test_a_short_clip_is_refused(server: ComfyServer) -> None:
    graph = training("short")
    graph["clips"]["inputs"]["frames"] = 9
    message = error(server, graph)
    assert "clip 1" in message and "8 frames" in message and "9" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../outside"}, "'../outside'"),
        ({"own_recipe": {"warmup": 10}}, "warmup is 10"),
    ],
)
def test_invalid_settings_are_refused(
    server: ComfyServer, changes: dict[str, Any], words: str
) -> None:
    message = error(server, training("odd", **changes))
    assert message.startswith("LAMP Trainer: ")
    assert words in message
    assert not any(".part" in path.name for path in server.base.rglob("*"))


def test_a_model_with_a_motion_is_not_trained_again(server: ComfyServer) -> None:
    graph = training("first")
    second = training("second")["train"]
    second["inputs"].update(model=["train", 0])
    message = error(server, {**graph, "second": second})
    assert message.startswith("LAMP Trainer: ") and "motion" in message


def kept(server: ComfyServer, run: str) -> list[str]:
    folder = server.base / "output/lamp_training" / run
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_resumed_run_equals_an_uninterrupted_one(
    server: ComfyServer,
) -> None:
    straight = server.queue(training("straight", steps=6)).check()
    assert "straight_00001.safetensors" in motions(server)

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress_text" and "step 3 of" in event["data"]["text"]:
            server.interrupt()

    assert server.queue(training("resumed", steps=6), cancel).status == "interrupted"
    assert any(name.startswith("state-step") for name in kept(server, "resumed_00001"))
    result = server.queue(training("resumed", steps=6, resume="latest")).check()
    texts = result.texts["train"]
    assert any("step 6 of 6" in text for text in texts)
    assert not any("step 1 of 6" in text for text in texts)
    assert straight.executed
    lines = [
        json.loads(line)
        for line in (server.base / "output/lamp_training/resumed_00001/log.jsonl")
        .read_text()
        .splitlines()
    ]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    folder = server.base / "models/lamp_motion"
    with (
        safe_open(folder / "straight_00001.safetensors", "np") as one,
        safe_open(folder / "resumed_00001.safetensors", "np") as other,
    ):
        for name in one.keys():  # noqa: SIM118
            np.testing.assert_array_equal(one.get_tensor(name), other.get_tensor(name), name)


def test_resuming_with_another_seed_is_refused(server: ComfyServer) -> None:
    server.queue(training("seeded", save_every=2)).check()
    message = error(server, training("seeded", resume="latest", seed=6))
    assert "seed 5" in message and "6" in message


def test_a_run_leaves_a_log_samples_and_pictures(server: ComfyServer) -> None:
    graph = training("shown", steps=4, sample_every=2, save_every=2, hold_out=1)
    graph["plot"] = node("LossGraphNode", loss=["train", 4], filename_prefix="loss")
    result = server.queue(graph).check()
    assert kept(server, "shown_00001") == [
        "log.jsonl",
        "loss.png",
        "sample-step000002.webp",
        "sample-step000004.webp",
        "samples.png",
        "samples.webp",
        "state-step000002.safetensors",
        "state-step000004.safetensors",
    ]
    folder = server.base / "output/lamp_training/shown_00001"
    with Image.open(folder / "sample-step000004.webp") as sample:
        assert (sample.n_frames, sample.size) == (8, (32, 32))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert ["held_out_loss" in line for line in lines] == [False, True, False, True]
    estimates = [text for text in result.texts["train"] if re.search(r"\d [kMG]B\b", text)]
    log = server.log_text()
    assert estimates and all(
        text in log for text in estimates
    )  # not every front end shows texts below a node
    assert result.outputs["plot"]["images"]
