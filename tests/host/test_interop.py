"""With ComfyUI's own nodes: custom sampling, saved videos, files with workflows."""

from __future__ import annotations

import json
import shutil
from typing import Any

from safetensors import safe_open

from scripts.server.server import ComfyServer
from scripts.workflows.convert import Prompt
from tests.host.generate_graphs import STEPS, Graph, base, looking, motions, node, stock
from tests.host.test_train import training

CANVAS: dict[str, Any] = {"nodes": [{"id": 1, "type": "馬"}], "links": [], "version": 0.4}


def in_pieces(**parts: dict[str, Any]) -> Graph:
    """KSampler as a graph of the host's NOISE, GUIDER, SAMPLER and SIGMAS."""
    graph = {
        "noise": node("RandomNoise", noise_seed=7),
        "guider": node(
            "CFGGuider",
            model=["load", 0],
            positive=["model", 1],
            negative=["model", 1],
            cfg=5.0,
        ),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node(
            "BasicScheduler", model=["load", 0], scheduler="normal", steps=STEPS, denoise=1.0
        ),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
    }
    return {**graph, **parts}


def seen(server: ComfyServer, graph: Graph) -> dict[str, Any]:
    return server.queue(graph | looking()).check().outputs["look"]


def test_the_hosts_custom_sampling_gives_the_same_video(server: ComfyServer, motion: str) -> None:
    whole = seen(server, base(motion) | {"sample": stock()})
    assert seen(server, base(motion) | in_pieces()) == whole
    other = {"noise": node("RandomNoise", noise_seed=8)}
    assert seen(server, base(motion) | in_pieces(**other)) != whole


def test_a_guider_without_guidance(server: ComfyServer, motion: str) -> None:
    guider = node("BasicGuider", model=["load", 0], conditioning=["model", 1])
    plain = seen(server, base(motion) | in_pieces(guider=guider))
    # With equal prompts, guidance 5 has no effect.
    assert plain == seen(server, base(motion) | {"sample": stock(cfg=1.0)})


def test_a_saved_video_can_be_extended(server: ComfyServer) -> None:
    out: Prompt = {
        "object": node("LAMP_ToyObject", seed=0, unseen="combination", number=0),
        "video": node("CreateVideo", images=["object", 2], fps=6.0),
        "save": node(
            "SaveVideo", video=["video", 0], filename_prefix="out", format="mp4", codec="h264"
        ),
    }
    result = server.queue(out, canvas=CANVAS).check()
    (file,) = result.files("save")
    saved = server.base / "output" / file["subfolder"] / file["filename"]
    shutil.copy(saved, server.base / "input" / "comes_in.mp4")
    back: Prompt = {
        "load": node("LoadVideo", file="comes_in.mp4"),
        "parts": node("GetVideoComponents", video=["load", 0]),
        "clips": node(
            "LAMP_TrainingClips",
            folder="(from images)",
            prompt="it moves",
            frames=8,
            width=32,
            height=32,
            fps=0.0,
            stride=1,
            fit="crop",
            short_clips="error",
            flip=False,
            bucket=False,
            images=["parts", 0],
        ),
        "report": node("PreviewAny", source=["clips", 1]),
    }
    text = server.queue(back).check().outputs["report"]["text"][0]
    assert text.startswith("1 clip, 1 window of 8 frames, stride 1, 32 x 32")


def header(server: ComfyServer, name: str) -> dict[str, str]:
    with safe_open(motions(server) / name, "pt") as file:
        return file.metadata()


def test_a_saved_motion_contains_the_workflow(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {
        "save": node("LAMP_SaveMotion", motion=["load", 1], filename_prefix="tests/canvas")
    }
    shown = server.queue(graph, canvas=CANVAS).check().outputs["save"]["text"][0]
    written = header(server, shown.removeprefix("models/lamp_motion/"))
    assert json.loads(written["workflow"]) == CANVAS
    assert json.loads(written["prompt"])["save"]["class_type"] == "LAMP_SaveMotion"


def test_a_trained_motion_contains_the_workflow(server: ComfyServer) -> None:
    server.queue(training("tests/trained_canvas"), canvas=CANVAS).check()
    written = header(server, "tests/trained_canvas_00001.safetensors")
    assert json.loads(written["workflow"]) == CANVAS
