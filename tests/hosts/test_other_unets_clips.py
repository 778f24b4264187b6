"""Clips and prompts encoded for SD 2.x and SD-XL by ComfyUI's models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lamp.clips.clip_set import ClipSet
from lamp.clips.load import clips_from_images
from lamp.errors import IncompatibleModelError
from lamp.training.latents import LatentClips
from tests.helpers.other_unets import FRAMES, SmallClip, drawn, patcher_of
from tests.nodes.test_nodes_first_frame import painting, vae_of

pytestmark = pytest.mark.slow  # many of them

SD_SCALE, XL_SCALE = 0.18215, 0.13025


@pytest.fixture
def prepare(
    comfy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., LatentClips]:
    """`prepare_clips` with the toy's VAE and a cache of its own."""
    import folder_paths

    from lamp.hosts.comfy.clips import prepare_clips
    from lamp.hosts.comfy.toy import load_toy_models
    from lamp.toy.base import toy_state

    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    vae = load_toy_models(toy_state()).vae
    images = [drawn(seed, FRAMES, 32, 32, 3).sigmoid() for seed in (1, 2)]
    clips = clips_from_images(images, ["one", "two"], FRAMES, 32, 32)

    def prepared(kind: str, clip: Any, clips: ClipSet = clips) -> LatentClips:
        said: list[str] = []
        with torch.inference_mode():
            return prepare_clips(patcher_of(kind), vae, clip, clips, print, said.append)

    return prepared


def test_the_prompts_of_sdxl_carry_the_pooled_embedding(prepare: Any) -> None:
    clip = SmallClip("sdxl")
    latents = prepare("sdxl", clip)
    ((text, about),) = clip.encode_from_tokens_scheduled(clip.tokenize("two"))
    seen = latents.text["two"]
    assert torch.equal(seen[..., :2048], text)
    assert torch.equal(seen[..., 2048:], about["pooled_output"].expand(77, -1)[None])
    assert about["pooled_output"].abs().max() > 0.1
    assert latents.scale == XL_SCALE
    again = prepare("sdxl", clip)  # from the cache
    assert all(torch.equal(again.text[name], text) for name, text in latents.text.items())


def test_sd_2_has_no_pooled_embedding(prepare: Any) -> None:
    clip = SmallClip("sd2")
    latents = prepare("sd2", clip)
    ((text, _),) = clip.encode_from_tokens_scheduled(clip.tokenize("two"))
    assert torch.equal(latents.text["two"], text)
    assert latents.scale == SD_SCALE


@pytest.mark.parametrize(
    ("kind", "clip", "words"),
    [
        ("sdxl", "sd2", "SD-XL.*2048.*24"),
        ("sd2", "sdxl", "SD 2.x.*1024.*2048"),
    ],
)
def test_the_text_encoder_of_another_family_is_refused(
    prepare: Any, kind: str, clip: str, words: str
) -> None:
    with pytest.raises(IncompatibleModelError, match=words):
        prepare(kind, SmallClip(clip))


def test_a_text_encoder_without_pooled_embedding_is_refused(prepare: Any) -> None:
    clip = SmallClip("sdxl")
    encode = clip.encode_from_tokens_scheduled
    clip.encode_from_tokens_scheduled = lambda tokens: [[encode(tokens)[0][0], {}]]
    with pytest.raises(IncompatibleModelError, match="pooled.*SD-XL"):
        prepare("sdxl", clip)


@pytest.mark.parametrize(("kind", "vae"), [("sdxl", "SD15"), ("sd2", "SDXL")])
def test_the_vae_of_another_family_is_refused(
    prepare: Any, monkeypatch: pytest.MonkeyPatch, kind: str, vae: str
) -> None:
    import comfy.latent_formats

    from lamp.hosts.comfy import clips as comfy_clips

    encode = vae_of(getattr(comfy.latent_formats, vae)()).encode
    monkeypatch.setattr(
        comfy_clips, "encode_posterior", lambda _, frames: (encode(frames), encode(frames) * 0)
    )
    pictures = painting(64, 64).expand(FRAMES, -1, -1, -1)
    with pytest.raises(IncompatibleModelError, match="VAE.*SD"):
        prepare(kind, SmallClip(kind), clips_from_images([pictures], ["one"], FRAMES, 64, 64))


@pytest.mark.parametrize("node", ["lcm", "x0", "edm"])
def test_models_that_predict_something_else_are_refused(comfy: ModuleType, node: str) -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete

    from lamp.hosts.comfy.training import check_trainable

    patcher = patcher_of("sdxl")
    if node == "edm":
        (other,) = ModelSamplingContinuousEDM().patch(patcher, "edm", 80.0, 0.002)
    else:
        (other,) = ModelSamplingDiscrete().patch(patcher, node, False)
    with pytest.raises(IncompatibleModelError, match="ModelSampling"):
        check_trainable(other)
    (usual,) = ModelSamplingDiscrete().patch(patcher, "v_prediction", True)
    check_trainable(usual)
