"""Motion and generation nodes in the real server: results, and no traces left on the model."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors import safe_open

from scripts.server.server import ComfyServer, RunResult
from tests.host.generate_graphs import STEPS, base, ksampler, looking, motions, node, stock


def digest(result: RunResult) -> str:
    """Digest of the latent of a run, after checks that hold for any video."""
    found = result.check().outputs["look"]
    assert found["finite"] == [True] and found["shape"] == [[6, 4, 8, 8]]
    assert found["first_equal"] == [True] and found["rest_moved"] == [True]
    return found["digest"][0]


# --- results --------------------------------------------------------------------------------------


def test_a_saved_motion_is_listed_and_described(server: ComfyServer, motion: str) -> None:
    assert motion == "tests/tiny_00001.safetensors"
    options = server.object_info("LAMP_LoadMotion")["LAMP_LoadMotion"]["input"]["required"]
    assert motion in options["motion_name"][1]["options"]
    with safe_open(motions(server) / motion, framework="pt") as file:
        header = file.metadata()
    assert header["modelspec.license"] == "MIT"
    assert json.loads(header["prompt"])["save"]["class_type"] == "LAMP_SaveMotion"
    graph = base(motion) | {"info": node("LAMP_MotionInfo", motion=["load", 1])}
    text = server.queue(graph).check().outputs["info"]["text"][0]
    assert "tiny_00001.safetensors" in text and "License: MIT" in text


def test_the_lamp_sampler_is_deterministic(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": ksampler()} | looking()
    first = server.queue(graph)
    assert first.progress[-1][1:] == (STEPS, STEPS)
    server.free()  # clears cached outputs
    second = server.queue(graph)
    assert "sample" in second.executed
    assert digest(first) == digest(second)
    assert second.outputs["hooks"]["hooks"] == [0]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "uni_pc"])
def test_the_stock_sampler_runs(server: ComfyServer, motion: str, sampler: str) -> None:
    graph = base(motion) | {"sample": stock(sampler_name=sampler)} | looking()
    result = server.queue(graph)
    digest(result)
    assert result.outputs["hooks"]["hooks"] == [0]


def test_two_motions_act_on_one_model(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": ksampler()} | looking()
    once = digest(server.queue(graph))
    settings = graph["load"]["inputs"] | {"model": ["load", 0]}

    def beside(**changes: Any) -> RunResult:
        second = node("LAMP_LoadMotion", **{**settings, **changes})
        return server.queue({**graph, "second": second, "sample": ksampler(model=["second", 0])})

    assert digest(beside(strength=0.0)) == once
    both = beside(strength=0.5)
    assert digest(both) != once
    assert both.outputs["hooks"]["hooks"] == [0]


def test_custom_sampling_equals_the_lamp_sampler(server: ComfyServer, motion: str) -> None:
    custom = base(motion) | {
        "noise": node("LAMP_SharedNoise", latent=["latent", 0], seed=7, alpha=0.2),
        "adain": node(
            "LAMP_AdaINSchedule",
            mode="custom",
            switch=0.6,
            first_strength=1.0,
            second_strength=0.5,
        ),
        "sampler": node("LAMP_Sampler", sampler_name="ddim", adain_schedule=["adain", 0]),
        "sigmas": node("LAMP_Scheduler", model=["load", 0], steps=STEPS, denoise=1.0),
        "guider": node(
            "CFGGuider",
            model=["load", 0],
            positive=["model", 1],
            negative=["model", 1],
            cfg=5.0,
        ),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 1],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
    }
    ours = base(motion) | {name: custom[name] for name in ("noise", "adain")}
    ours["sample"] = ksampler(adain_schedule=["adain", 0], noise=["noise", 0])
    digests = {digest(server.queue(graph | looking())) for graph in (custom, ours)}
    assert len(digests) == 1
    plain = base(motion) | {"sample": ksampler()} | looking()
    assert digest(server.queue(plain)) not in digests


def test_a_picture_becomes_a_video(server: ComfyServer) -> None:
    """With the toy base: first frame, sampler, decoder, histogram, saved frames."""
    graph = {
        "base": node("LAMP_LoadToyBase"),
        "random": node("TinyMotion", model=["base", 0], family="", broken=False),
        "save": node("LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/toy"),
    }
    shown = server.queue(graph).check().outputs["save"]["text"][0]
    graph = {
        "base": node("LAMP_LoadToyBase"),
        "load": node(
            "LAMP_LoadMotion",
            model=["base", 0],
            motion_name=shown.removeprefix("models/lamp_motion/"),
            strength=1.0,
            alpha=0.2,
            start_percent=0.0,
            end_percent=1.0,
        ),
        "prompt": node("CLIPTextEncode", clip=["base", 1], text="a red disc moves right"),
        "picture": node("EmptyImage", width=48, height=32, batch_size=1, color=0xFF8000),
        "latent": node(
            "LAMP_FirstFrameCondition",
            vae=["base", 2],
            image=["picture", 0],
            width=32,
            height=32,
            frames=6,
            fit="crop",
        ),
        "sample": ksampler(positive=["prompt", 0], negative=["prompt", 0]),
        "look": node("LookAtLatent", latent=["sample", 0], given=["latent", 0]),
        "frames": node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "matched": node("LAMP_HistogramMatch", images=["frames", 0], strength=1.0),
        "files": node("SaveImage", images=["matched", 0], filename_prefix="video"),
    }
    result = server.queue(graph).check()
    found = result.outputs["look"]
    assert found["shape"] == [[6, 4, 16, 16]] and found["finite"] == [True]
    assert found["first_equal"] == [True]
    assert len(result.files("files")) == 6


# --- traces ---------------------------------------------------------------------------------------


def plain_digest(server: ComfyServer) -> tuple[str, int]:
    """What the image model alone generates now, not from the cache, and the hooks on it."""
    graph = base("unused")
    del graph["load"]
    server.free()
    graph |= {"sample": stock(model=["model", 0])} | looking()
    result = server.queue(graph).check()
    return result.outputs["look"]["digest"][0], result.outputs["hooks"]["hooks"][0]


def test_an_error_in_the_middle_leaves_no_trace(server: ComfyServer, motion: str) -> None:
    before = plain_digest(server)
    graph = base(motion) | {"broken": node("FailWhileSampling", model=["load", 0])}
    graph |= {"sample": ksampler(model=["broken", 0])} | looking()
    result = server.queue(graph)
    assert result.error is not None and "broke in the middle" in result.error.message
    hooks = {"model": graph["model"], "hooks": node("CountHooks", model=["model", 0])}
    after = server.queue(hooks).check()
    assert "model" in after.cached and after.outputs["hooks"]["hooks"] == [0]
    assert plain_digest(server) == before
    digest(server.queue(base(motion) | {"sample": ksampler()} | looking()))


def test_a_cancel_leaves_no_trace(server: ComfyServer, motion: str) -> None:
    before = plain_digest(server)
    graph = base(motion) | {"sample": ksampler(steps=900)} | looking()
    pressed = []

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["value"] >= 2 and not pressed:
            pressed.append(1)
            server.interrupt()

    assert server.queue(graph, cancel).status == "interrupted"
    hooks = {"model": graph["model"], "hooks": node("CountHooks", model=["model", 0])}
    after = server.queue(hooks).check()
    assert "model" in after.cached and after.outputs["hooks"]["hooks"] == [0]
    assert plain_digest(server) == before


def test_the_plain_model_is_unchanged_after_a_run(server: ComfyServer, motion: str) -> None:
    both = base(motion) | {
        "sample": ksampler(),
        "still": stock(model=["model", 0]),
        "look_still": node("LookAtLatent", latent=["still", 0]),
    }
    before, _ = plain_digest(server)
    server.free()
    result = server.queue(both | looking()).check()
    assert result.outputs["look_still"]["digest"] == [before]
