"""SD 2.x and SD-XL in the real server: trained by the node, saved, loaded, sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.prompts import join_pooled
from lamp.method.sampling import sample
from lamp.motion_file.file import MotionFile, load_motion_file
from scripts.server.server import ComfyServer
from tests.helpers.other_unets import SmallClip, diffusers_of, is_xl
from tests.host.generate_graphs import STEPS, Graph, base, ksampler, looking, motions, node
from tests.host.test_train import training

KINDS = ["sd2 v-prediction", "sdxl"]


def file_of(kind: str) -> str:
    return f"other/{kind.split()[0]}_00001.safetensors"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, server: ComfyServer) -> str:
    """A motion, trained once."""
    graph = training(f"other/{request.param.split()[0]}", sample_every=2)
    graph["base"] = node("OtherModel", kind=request.param)
    result = server.queue(graph).check()
    assert any("step 3 of 3" in text for text in result.texts["train"])
    return request.param


def trained(server: ComfyServer, kind: str) -> MotionFile:
    return load_motion_file(motions(server) / file_of(kind))


def generating(kind: str) -> Graph:
    graph = base(file_of(kind))
    graph["model"] = node("OtherModel", kind=kind)
    graph["positive"] = node("CLIPTextEncode", clip=["model", 1], text="a star")
    graph["negative"] = node("CLIPTextEncode", clip=["model", 1], text="")
    sampler = ksampler(positive=["positive", 0], negative=["negative", 0])
    saving = node("SaveLatent", samples=["sample", 0], filename_prefix=f"other {kind}")
    return {**graph, "sample": sampler, "save": saving, **looking()}


def prompt(clip: SmallClip, kind: str, text: str) -> Tensor:
    with torch.no_grad():
        ((tokens, about),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return join_pooled(tokens, about["pooled_output"]) if is_xl(kind) else tokens


def test_the_trained_motion_samples_as_with_diffusers(
    server: ComfyServer, kind: str, comfy: object
) -> None:
    result = server.queue(generating(kind)).check()
    assert result.outputs["look"]["first_equal"] == [True]
    assert result.outputs["look"]["rest_moved"] == [True]
    assert result.outputs["hooks"]["hooks"] == [0]
    (saved,) = (server.base / "output").glob(f"other {kind}_*.latent")
    seen = load_file(saved)["latent_tensor"]

    host, file = diffusers_of(kind), trained(server, kind)
    assert file.config.family == kind.split()[0]
    motion = Motion(map_unet(host.unet)).requires_grad_(False)
    motion.load_state_dict(file.state)
    scale = 0.13025 if is_xl(kind) else 0.18215
    first = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    first[0, 0, 0] = 1.0
    clip = SmallClip(kind)
    expected = sample(
        host,
        motion,
        first[None] * scale,
        share_noise(draw_noise(6, 4, 8, 8, 7)),
        prompt(clip, kind, "a star"),
        prompt(clip, kind, ""),
        steps=STEPS,
        guidance=5.0,
        schedule=AdaINSchedule("paper"),
    )
    assert (seen * scale - expected).abs().max() < 1e-4 * expected.abs().max()


def test_training_saves_samples(server: ComfyServer, kind: str) -> None:
    folder = server.base / "output" / "lamp_training" / Path(file_of(kind)).with_suffix("")
    assert [path.name for path in sorted(folder.glob("sample-*.webp"))]


def test_models_and_text_encoders_of_other_families_are_refused(
    server: ComfyServer, kind: str
) -> None:
    name = {"sd2": "SD 2.x", "sdxl": "SD-XL"}[kind.split()[0]]
    graph = generating(kind)
    graph["model"] = node("TinyModel", text_width=768, seed=0)
    graph["load"]["inputs"]["model"] = ["model", 0]
    graph["other"] = node("OtherModel", kind=kind)
    for text in ("positive", "negative"):
        graph[text]["inputs"]["clip"] = ["other", 1]
    said = server.queue(graph).error.message
    assert name in said and "SD 1.x" in said and "MODEL" in said
    graph = training("other/mixed")
    graph["other"] = node("OtherModel", kind=kind)
    graph["train"]["inputs"]["model"] = ["other", 0]
    said = server.queue(graph).error.message
    assert said.startswith("LAMP Trainer: ") and "CLIP" in said and name in said
    assert not (motions(server) / "other/mixed_00001.safetensors").exists()
