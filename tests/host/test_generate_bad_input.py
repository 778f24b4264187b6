"""Errors for bad input to the generation nodes, in the real server."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import save_file

from scripts.server.server import ComfyServer, PromptRejected
from tests.host.generate_graphs import Graph, base, ksampler, looking, motions, node, stock


def refused(server: ComfyServer, graph: Graph, *parts: str) -> None:
    """The run ends with a message of one line, which ComfyUI shows."""
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
        "Load LAMP Motion: ",
        "sd1_00001.safetensors",
        "SD 1.x",
        "SD-XL",
    )
    graph["model"] = node("TinyModel", text_width=1024, seed=0)
    refused(server, graph, "SD 2.x", "SD 1.x", "VAE")


def test_other_files(server: ComfyServer) -> None:
    import torch

    path = motions(server) / "foreign.safetensors"
    graph = base(path.name) | {"sample": ksampler()} | looking()
    with pytest.raises(PromptRejected, match="'foreign.safetensors'"):
        server.queue(graph)
    save_file({"lora_up.weight": torch.zeros(2)}, path)
    refused(server, graph, "Load LAMP Motion: ", "foreign.safetensors", "lamp.format")
    path.write_bytes(b"cut off in the middle of a download")
    refused(server, graph, "Load LAMP Motion: ", "foreign.safetensors", "header")
    path.unlink()


def test_sampling_without_a_motion(server: ComfyServer) -> None:
    graph = base("unused")
    del graph["load"]
    graph |= {"sample": ksampler(model=["model", 0])} | looking()
    refused(server, graph, "LAMP KSampler: ", "MODEL", "Load LAMP Motion")


@pytest.mark.parametrize(
    ("latent", "ours", "theirs"),
    [
        ({"frames": 1}, "1 frame of 4 x 8 x 8", " 2 frames"),
        ({"channels": 16}, "16 channels", "16 channels"),
        ({"nan": True}, "NaN", "--fp32-vae"),
    ],
)
def test_latents_that_are_not_videos(
    server: ComfyServer, motion: str, latent: dict[str, Any], ours: str, theirs: str
) -> None:
    graph = base(motion, **latent)
    refused(server, graph | {"sample": ksampler()} | looking(), "LAMP KSampler: ", ours)
    refused(server, graph | {"sample": stock()} | looking(), theirs)


def test_an_empty_latent(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": stock()} | looking()
    graph["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=6)
    refused(server, graph, "Frame 1", "LAMP First-Frame Condition")


def test_noise_and_latent_of_different_size(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {
        "longer": node("TinyLatent", frames=8, channels=4, value=0.0, nan=False),
        "noise": node("LAMP_SharedNoise", latent=["longer", 0], seed=1, alpha=0.2),
        "sample": ksampler(noise=["noise", 0]),
    }
    sizes = ("8 frames of 4 x 8 x 8", "6 frames of 4 x 8 x 8")
    refused(server, graph | looking(), "LAMP KSampler: ", *sizes)


def test_a_sampler_without_adain(server: ComfyServer, motion: str) -> None:
    graph = base(motion) | {"sample": ksampler(sampler_name="uni_pc")} | looking()
    refused(server, graph, "LAMP KSampler: ", "uni_pc", "AdaIN", "off")


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
    refused(server, first_frame("sdxl"), name, "VAE", "SD-XL", "SD 1.x checkpoint")
    refused(server, first_frame("video"), name, "video VAE", "SD 1.x checkpoint")
    refused(server, first_frame("16 channels"), name, "16 latent channels", "SD 1.x")
    refused(server, first_frame("nan"), name, "VAE", "NaN", "--fp32-vae")
    graph = first_frame()
    graph["picture"] = node("NanImage")
    refused(server, graph, name, "image", "NaN")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"width": 500}, "width.*500.*496"),
        ({"height": 0}, "height.* 0"),
        ({"frames": 1}, "frames.* 1.* 2 .*1024"),
    ],
)
def test_sizes_are_refused_before_anything_runs(
    server: ComfyServer, changes: dict[str, Any], facts: str
) -> None:
    with pytest.raises(PromptRejected, match=f"LAMP_FirstFrameCondition.*{facts}"):
        server.queue(first_frame(**changes))


def test_a_broken_motion_is_not_saved(server: ComfyServer) -> None:
    graph = {
        "model": node("TinyModel", text_width=32, seed=0),
        "random": node("TinyMotion", model=["model", 0], family="", broken=True),
        "save": node("LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/broken"),
    }
    refused(server, graph, "Save LAMP Motion: ", "NaN")
    graph["random"]["inputs"]["broken"] = False
    graph["save"]["inputs"]["filename_prefix"] = "../outside"
    refused(server, graph, "Save LAMP Motion: ", "'../outside'", "models/lamp_motion")
    assert not list(server.base.rglob("*broken*")) and not list(server.base.rglob("*outside*"))
