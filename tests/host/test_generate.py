"""Motion and generation nodes in the real server: results, traces, and what bad input says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from scripts.comfy_server import ComfyServer, PromptRejected, RunResult

Graph = dict[str, dict[str, Any]]
STEPS = 3


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def motions(server: ComfyServer) -> Path:
    return server.base / "models" / "lamp_motion"


@pytest.fixture(scope="module")
def motion(server: ComfyServer) -> str:
    """A motion file for the tiny model, written by Save LAMP Motion."""
    graph = {
        "model": node("TinyModel", text_width=32, seed=0),
        "random": node("TinyMotion", model=["model", 0], family="", broken=False),
        "save": node(
            "LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/tiny", license="MIT"
        ),
    }
    shown = server.queue(graph).check().outputs["save"]["text"][0]
    return shown.removeprefix("models/lamp_motion/")


def base(motion: str, **latent: Any) -> Graph:
    """The tiny model with a motion, prompts and a latent."""
    latent = {"frames": 6, "channels": 4, "value": 0.0, "nan": False, **latent}
    return {
        "model": node("TinyModel", text_width=32, seed=0),
        "load": node(
            "LAMP_LoadMotion",
            model=["model", 0],
            motion_name=motion,
            strength=1.0,
            alpha=0.2,
            start_percent=0.0,
            end_percent=1.0,
        ),
        "latent": node("TinyLatent", **latent),
    }


def ksampler(**changes: Any) -> dict[str, Any]:
    settings = {
        "model": ["load", 0],
        "positive": ["model", 1],
        "negative": ["model", 1],
        "latent": ["latent", 0],
        "seed": 7,
        "steps": STEPS,
        "cfg": 5.0,
        "sampler_name": "ddim",
        "scheduler": "ddim (official)",
        "adain": "paper",
        "denoise": 1.0,
        **changes,
    }
    return node("LAMP_KSampler", **settings)


def stock(**changes: Any) -> dict[str, Any]:
    settings = {
        "model": ["load", 0],
        "positive": ["model", 1],
        "negative": ["model", 1],
        "latent_image": ["latent", 0],
        "seed": 7,
        "steps": STEPS,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        **changes,
    }
    return node("KSampler", **settings)


def looking(sampler: str = "sample") -> Graph:
    return {
        "look": node("LookAtLatent", latent=[sampler, 0], given=["latent", 0]),
        "hooks": node("CountHooks", model=["model", 0]),
    }


def digest(result: RunResult) -> str:
    """The run's latent, after the checks that hold for any video."""
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


def test_the_lamp_sampler_runs_twice_alike(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": ksampler()} | looking()
    first = server.queue(graph)
    assert first.progress[-1][1:] == (STEPS, STEPS)
    server.free()  # forget what was computed
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
    """The embedded base: first frame, sampler, decoder, colours, saved frames."""
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
    """What the image model alone draws now, computed anew, and the hooks on it."""
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


def test_the_plain_model_draws_the_same_after_a_run(server: ComfyServer, motion: str) -> None:
    both = base(motion) | {
        "sample": ksampler(),
        "still": stock(model=["model", 0]),
        "look_still": node("LookAtLatent", latent=["still", 0]),
    }
    before, _ = plain_digest(server)
    server.free()
    result = server.queue(both | looking()).check()
    assert result.outputs["look_still"]["digest"] == [before]


# --- bad input ------------------------------------------------------------------------------------


def refused(server: ComfyServer, graph: Graph, *parts: str) -> None:
    """The run ends with one sentence, as ComfyUI shows it."""
    result = server.queue(graph)
    assert result.error is not None, f"the run ended as {result.status}"
    for part in parts:
        assert part in result.error.message
    assert "\n" not in result.error.message
    assert result.error.message.endswith(".")


def test_an_sdxl_model_with_an_sd1_motion(server: ComfyServer) -> None:
    graph = {
        "model": node("TinyModel", text_width=32, seed=0),
        "random": node("TinyMotion", model=["model", 0], family="sd1", broken=False),
        "save": node("LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/sd1"),
    }
    shown = server.queue(graph).check().outputs["save"]["text"][0]
    graph = base(shown.removeprefix("models/lamp_motion/"))
    graph["model"] = node("TinyModel", text_width=2048, seed=0)
    graph |= {"sample": ksampler()} | looking()
    refused(
        server,
        graph,
        "Load LAMP Motion: sd1_00001.safetensors was trained for SD 1.x; the connected MODEL is "
        "SD-XL.",
        "Use SD-XL only for the first frame",
    )
    graph["model"] = node("TinyModel", text_width=1024, seed=0)
    refused(server, graph, "the connected MODEL is SD 2.x. Connect a SD 1.x checkpoint.")


def test_files_that_are_no_motion(server: ComfyServer) -> None:
    import torch

    path = motions(server) / "foreign.safetensors"
    graph = base(path.name) | {"sample": ksampler()} | looking()
    with pytest.raises(PromptRejected, match="no motion file 'foreign.safetensors'"):
        server.queue(graph)
    save_file({"lora_up.weight": torch.zeros(2)}, path)
    refused(server, graph, "Load LAMP Motion: foreign.safetensors is no LAMP motion", "own loaders")
    path.write_bytes(b"cut off in the middle of a download")
    refused(server, graph, "foreign.safetensors is no readable .safetensors file", "again")
    path.unlink()


def test_a_second_motion_on_one_model(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": ksampler(model=["second", 0])} | looking()
    graph["second"] = node(
        "LAMP_LoadMotion",
        model=["load", 0],
        motion_name=motion,
        strength=1.0,
        alpha=0.2,
        start_percent=0.0,
        end_percent=1.0,
    )
    refused(server, graph, "Load LAMP Motion: This MODEL already carries a LAMP motion")


def test_sampling_without_a_motion(server: ComfyServer) -> None:
    graph = base("unused")
    del graph["load"]
    graph |= {"sample": ksampler(model=["model", 0])} | looking()
    refused(server, graph, "LAMP KSampler: The MODEL has no LAMP motion", "Load LAMP Motion")


@pytest.mark.parametrize(
    ("latent", "ours", "theirs"),
    [
        ({"frames": 1}, "1 frame of 4 x 8 x 8. Make it with", "at least 2 frames"),
        ({"channels": 16}, "has 16 channels, the MODEL needs 4", "has 16 channels"),
        ({"nan": True}, "contains NaN or infinite values", "--fp32-vae"),
    ],
)
def test_latents_that_are_no_video(
    server: ComfyServer, motion: str, latent: dict[str, Any], ours: str, theirs: str
) -> None:
    graph = base(motion, **latent)
    refused(server, graph | {"sample": ksampler()} | looking(), "LAMP KSampler: ", ours)
    refused(server, graph | {"sample": stock()} | looking(), theirs)


def test_an_empty_latent(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": stock()} | looking()
    graph["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=6)
    refused(server, graph, "Frame 1 of the latent is empty", "LAMP First-Frame Condition")


def test_noise_and_latent_that_disagree(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {
        "longer": node("TinyLatent", frames=8, channels=4, value=0.0, nan=False),
        "noise": node("LAMP_SharedNoise", latent=["longer", 0], seed=1, alpha=0.2),
        "sample": ksampler(noise=["noise", 0]),
    }
    refused(
        server,
        graph | looking(),
        "LAMP KSampler: The noise is 8 frames of 4 x 8 x 8, the latent is 6 frames of 4 x 8 x 8",
    )


def test_a_sampler_that_adain_cannot_follow(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": ksampler(sampler_name="uni_pc")} | looking()
    refused(server, graph, "LAMP KSampler: ", "uni_pc", "set AdaIN to off")


def first_frame(kind: str = "sd1", **changes: Any) -> Graph:
    settings = {"width": 64, "height": 64, "frames": 4, "fit": "crop", **changes}
    return {
        "vae": node("TinyVae", kind=kind),
        "ramp": node("EmptyImage", width=64, height=64, batch_size=1, color=0xFF2000),
        "other": node("EmptyImage", width=32, height=64, batch_size=1, color=0x0040FF),
        "picture": node(
            "ImageCompositeMasked",
            destination=["ramp", 0],
            source=["other", 0],
            x=0,
            y=0,
            resize_source=False,
        ),
        "latent": node(
            "LAMP_FirstFrameCondition", vae=["vae", 0], image=["picture", 0], **settings
        ),
        "look": node("LookAtLatent", latent=["latent", 0]),
    }


def test_first_frames_that_cannot_be_encoded(server: ComfyServer) -> None:
    name = "LAMP First-Frame Condition: "
    assert server.queue(first_frame()).check().outputs["look"]["shape"] == [[4, 4, 8, 8]]
    refused(server, first_frame("sdxl"), name, "VAE encodes for SD-XL", "SD 1.x checkpoint")
    refused(server, first_frame("video"), name, "video VAE", "Connect the VAE of the SD 1.x")
    refused(server, first_frame("16 channels"), name, "has 16 latent channels; SD 1.x has 4")
    refused(server, first_frame("nan"), name, "VAE returned NaN", "--fp32-vae")
    graph = first_frame()
    graph["picture"] = node("NanImage")
    refused(server, graph, name, "image contains NaN")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 500}, "width must be a positive multiple of 8, not 500. Use 496"),
        ({"height": 0}, "height must be a positive multiple of 8, not 0"),
        ({"frames": 1}, "frames is 1: a video has between 2 and 1024 frames"),
    ],
)
def test_sizes_are_refused_before_anything_runs(
    server: ComfyServer, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PromptRejected, match=f"LAMP_FirstFrameCondition.*{sentence}"):
        server.queue(first_frame(**changes))


def test_a_broken_motion_is_not_saved(server: ComfyServer) -> None:
    graph = {
        "model": node("TinyModel", text_width=32, seed=0),
        "random": node("TinyMotion", model=["model", 0], family="", broken=True),
        "save": node("LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/broken"),
    }
    refused(server, graph, "Save LAMP Motion: Nothing was written", "NaN")
    graph["random"]["inputs"]["broken"] = False
    graph["save"]["inputs"]["filename_prefix"] = "../outside"
    refused(server, graph, "'../outside' names no file below models/lamp_motion")
    assert not list(server.base.rglob("*broken*")) and not list(server.base.rglob("*outside*"))
