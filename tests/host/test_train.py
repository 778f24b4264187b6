"""Training in the real server: learn, save, generate; cancel; what a bad input says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from scripts.comfy_server import ComfyServer

Graph = dict[str, dict[str, Any]]
STEPS = 3


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def training(file: str, **changes: Any) -> Graph:
    settings = {
        "steps": STEPS,
        "learning_rate": 2e-3,
        "batch": 1,
        "seed": 5,
        "name": file,
        "rate_schedule": "constant",
        "warmup": 0,
        "ema": 0.0,
        "precision": "auto",
        "checkpointing": False,
        "groupnorm": "pooled",
        **changes,
    }
    return {
        "base": node("LAMP_LoadToyBase"),
        "world": node("LAMP_ToyClips", seed=0, clips=4),
        "clips": clips(images=["world", 0], prompt=["world", 1]),
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
        server.free()  # forget cached outputs, so that everything runs again
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


def test_the_motion_file_tells_how_it_was_made(server: ComfyServer) -> None:
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


def test_cancel_keeps_what_was_learned_and_the_server_goes_on(server: ComfyServer) -> None:
    pressed = []

    def cancel(event: dict[str, Any]) -> None:
        # The line of text tells every step; newer hosts leave out some moves of the bar.
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
    graph["sample"]["inputs"]["seed"] = 2  # or the first run's result would come from the cache
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


def test_an_empty_folder_is_named(server: ComfyServer) -> None:
    (server.base / "input" / "nothing here").mkdir(exist_ok=True)
    graph = training("empty")
    graph["clips"] = clips(folder="input/nothing here")
    message = error(server, graph)
    assert message.startswith("LAMP Training Clips: There are no clips in")
    assert "nothing here" in message


def test_an_unreadable_clip_is_named(server: ComfyServer) -> None:
    folder = server.base / "input" / "damaged"
    folder.mkdir(exist_ok=True)
    (folder / "broken 马.mp4").write_bytes(b"no film")
    graph = training("damaged")
    graph["clips"] = clips(folder="input/damaged")
    assert "broken 马.mp4" in error(server, graph)


def test_a_clip_that_is_too_short_is_named(server: ComfyServer) -> None:
    graph = training("short")
    graph["clips"]["inputs"]["frames"] = 9
    message = error(server, graph)
    assert "clip 1" in message and "8 frames" in message and "9" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../outside"}, "names no file below models/lamp_motion"),
        ({"warmup": 10}, "warmup is 10"),
    ],
)
def test_a_setting_that_cannot_work_is_named(
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
    assert "already carries a LAMP motion" in error(server, {**graph, "second": second})
