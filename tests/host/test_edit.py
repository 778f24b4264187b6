"""Editing and long videos in the real server."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.server.server import ComfyServer
from tests.host.generate_graphs import Graph, base, ksampler, looking, node

FRAMES = 8


@pytest.fixture(scope="module")
def toy_motion(server: ComfyServer) -> str:
    graph = {
        "base": node("LAMP_LoadToyBase"),
        "random": node("TinyMotion", model=["base", 0], family="", broken=False),
        "save": node("LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/edit"),
    }
    shown = server.queue(graph).check().outputs["save"]["text"][0]
    return shown.removeprefix("models/lamp_motion/")


def editing(motion: str, strength: float = 1.0, steps: int = 4) -> Graph:
    """Invert a toy clip to noise, and sample from it with the first frame of another clip."""
    case: dict[str, Any] = {"seed": 0, "unseen": "hard", "motion": "moves_right"}
    return {
        "base": node("LAMP_LoadToyBase"),
        "load": node(
            "LAMP_LoadMotion",
            model=["base", 0],
            motion_name=motion,
            strength=1.0,
            alpha=0.2,
            start_percent=0.0,
            end_percent=1.0,
        ),
        "clip": node("LAMP_ToyObject", number=0, **case),
        "other": node("LAMP_ToyObject", number=1, **case),
        "positive": node("CLIPTextEncode", clip=["base", 1], text=["other", 1]),
        "empty": node("CLIPTextEncode", clip=["base", 1], text=""),
        "encoded": node("VAEEncode", pixels=["clip", 2], vae=["base", 2]),
        "inverted": node(
            "LAMP_DDIMInversion",
            model=["load", 0],
            conditioning=["empty", 0],
            latent=["encoded", 0],
            steps=steps,
            strength=strength,
        ),
        "latent": node(
            "LAMP_FirstFrameCondition",
            vae=["base", 2],
            image=["other", 0],
            width=32,
            height=32,
            frames=FRAMES,
            fit="crop",
        ),
        "sample": ksampler(
            positive=["positive", 0],
            negative=["empty", 0],
            noise=["inverted", 0],
            steps=["inverted", 1],
            denoise=["inverted", 2],
        ),
        "hooks": node("CountHooks", model=["base", 0]),
        "look": node("LookAtLatent", latent=["sample", 0], given=["latent", 0]),
    }


@pytest.mark.parametrize(("strength", "up"), [(1.0, 4), (0.5, 2)])
def test_a_clip_is_edited(server: ComfyServer, toy_motion: str, strength: float, up: int) -> None:
    result = server.queue(editing(toy_motion, strength)).check()
    found = result.outputs["look"]
    assert found["shape"] == [[FRAMES, 4, 16, 16]] and found["finite"] == [True]
    assert found["first_equal"] == [True] and found["rest_moved"] == [True]
    assert ("inverted", up, up) in result.progress and result.progress[-1][1:] == (up, up)
    assert result.outputs["hooks"]["hooks"] == [0]


def test_a_cancelled_inversion_leaves_no_trace(server: ComfyServer, toy_motion: str) -> None:
    before = server.queue(editing(toy_motion)).check().outputs["look"]["digest"]
    pressed: list[int] = []

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["value"] >= 2 and not pressed:
            pressed.append(1)
            server.interrupt()

    assert server.queue(editing(toy_motion, steps=900), cancel).status == "interrupted"
    hooks = {"base": node("LAMP_LoadToyBase"), "hooks": node("CountHooks", model=["base", 0])}
    assert server.queue(hooks).check().outputs["hooks"]["hooks"] == [0]
    server.free()
    assert server.queue(editing(toy_motion)).check().outputs["look"]["digest"] == before


def test_a_long_video_in_windows_and_an_extended_one(server: ComfyServer, motion: str) -> None:
    graph = base(motion, frames=14) | {
        "windows": node("LAMP_AnchoredWindows", model=["load", 0], length=6, overlap=2),
        "sample": ksampler(model=["windows", 0]),
    }
    settings = ksampler(latent=["sample", 0])["inputs"]
    del settings["denoise"]
    graph["longer"] = node("LAMP_ExtendVideo", **settings, frames=6, times=2, hold_colors=1.0)
    graph |= looking() | {"whole": node("LookAtLatent", latent=["longer", 0])}
    result = server.queue(graph).check()
    assert result.outputs["look"]["shape"] == [[14, 4, 8, 8]]
    assert result.outputs["look"]["first_equal"] == [True]
    assert result.outputs["whole"]["shape"] == [[14 + 2 * 5, 4, 8, 8]]
    assert result.outputs["whole"]["finite"] == [True]
    assert result.outputs["hooks"]["hooks"] == [0]
