"""Patches of the host and of other packs on a MODEL with a motion: each does what it does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.samples.comfy_runs import moving, worst
from benchmarks.samples.ecosystem import PATCHES, WINDOWS, host_node, sample, still
from benchmarks.samples.tiny_models import text, video_latent
from benchmarks.samples.tiny_patches import image_tokens
from lamp.errors import LampError
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode", "no_hook_is_left"),
    pytest.mark.slow,  # many of them
]
EVERY_PATCH = pytest.mark.parametrize("kind", PATCHES)


@pytest.fixture(scope="module", autouse=True)
def the_image_model_is_as_it_was(plain: Any) -> Any:
    """Whatever the tests do."""
    with torch.inference_mode():
        before = sample(plain)
        yield
        assert torch.equal(sample(plain), before)


# Mahiro compares both prompts over all frames together, so what stands in frame 1 counts for all.
@pytest.mark.parametrize("kind", [kind for kind in PATCHES if kind != "Mahiro"])
def test_a_patch_acts_with_a_motion_as_without(plain: Any, kind: str) -> None:
    alone, beside = sample(PATCHES[kind](plain)), sample(PATCHES[kind](still(plain)))
    assert worst(alone[1:], sample(plain)[1:]) > 1e-3  # it does something
    assert torch.equal(beside[1:], alone[1:])


@EVERY_PATCH
def test_patch_and_motion_act_together_in_either_order(
    plain: Any, file: MotionFile, kind: str
) -> None:
    patch, first = PATCHES[kind], video_latent()[0]
    model = moving(plain, file)
    after, before = sample(patch(model)), sample(moving(patch(plain), file))
    assert torch.equal(after, before)
    assert torch.equal(after[0], first) and after.isfinite().all()
    assert worst(after, sample(model)) > 1e-3  # the patch acts
    assert worst(after, sample(patch(moving(plain, file, strength=0.0)))) > 1e-3  # so does motion
    assert torch.equal(sample(patch(model)), after)


def test_all_at_once(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file)
    for kind in ("FreeU_V2", "PerturbedAttentionGuidance", "TomePatchModel", "RescaleCFG"):
        model = PATCHES[kind](model)
    out = sample(model)
    assert torch.equal(out[0], video_latent()[0]) and out.isfinite().all()


@pytest.mark.parametrize("kind", ["HyperTile", "TomePatchModel"])
def test_patches_that_split_or_merge_tokens_are_refused_with_a_mask(
    plain: Any, file: MotionFile, kind: str
) -> None:
    from lamp.method.masks import MotionMask

    mask = torch.zeros(8, 8)
    mask[2:6, 2:6] = 1.0
    masked = moving(plain, file, motion_mask=MotionMask(mask))
    with pytest.raises(LampError, match="HyperTile"):
        sample(PATCHES[kind](masked))


# --- IP-Adapter -----------------------------------------------------------------------------------


def with_picture(model: Any, way: str, seed: int = 11, weight: float = 1.0) -> Any:
    """`model` that looks at the tokens of a picture beside those of the text."""
    patch, replace = image_tokens(text(seed, tokens=4)[0], weight)
    model = model.clone()
    if way == "attn2_patch":
        model.set_model_attn2_patch(patch)
        return model
    for block, number in (("input", 1), ("input", 3), ("middle", 0), ("output", 1)):
        model.set_model_attn2_replace(replace, block, number)
    return model


@pytest.mark.parametrize("way", ["attn2_patch", "attn2_replace"])
def test_image_tokens_in_cross_attention(plain: Any, file: MotionFile, way: str) -> None:
    model = moving(plain, file)
    alone, beside = (sample(with_picture(each, way)) for each in (plain, still(plain)))
    assert torch.equal(beside[1:], alone[1:])

    after = sample(with_picture(model, way))
    assert torch.equal(after, sample(moving(with_picture(plain, way), file)))
    assert torch.equal(after[0], video_latent()[0])
    unseen, other = sample(model), sample(with_picture(model, way, seed=12))
    assert worst(after, unseen) > 1e-3 and worst(after, other) > 1e-3
    if way == "attn2_replace":  # without weight it is the text's attention alone
        assert torch.equal(sample(with_picture(model, way, weight=0.0)), unseen)
    moved = worst(after, sample(with_picture(moving(plain, file, strength=0.0), way)))
    assert moved > 1e-3


# --- what cannot go together ----------------------------------------------------------------------


def test_comfyuis_context_windows_are_refused(plain: Any, file: MotionFile) -> None:
    node = ("context_windows", "ContextWindowsManualNode")
    for model in (
        host_node(*node, model=moving(plain, file), **WINDOWS),
        moving(host_node(*node, model=plain, **WINDOWS), file),
    ):
        with pytest.raises(LampError, match="LAMP Anchored Windows"):
            sample(model)


def test_anchored_windows_work_with_a_patch(plain: Any, file: MotionFile) -> None:
    from lamp.hosts.comfy.windows import with_windows
    from lamp.method.windows import Windows

    patch, video = PATCHES["FreeU_V2"], video_latent(7)
    windows = Windows(4, 2)
    model = with_windows(moving(plain, file), windows)
    after = sample(patch(model), samples=video)
    before = sample(with_windows(moving(patch(plain), file), windows), samples=video)
    assert torch.equal(after, before) and torch.equal(after[0], video[0])
    assert worst(after, sample(model, samples=video)) > 1e-3
