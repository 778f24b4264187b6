"""Nodes of newer ComfyUI versions on a MODEL with a motion.

Where the ComfyUI in use does not have a node yet, its tests are skipped; what is refused is tested
on every version.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import SEED, conditioning, core, count_hooks, moving, worst
from benchmarks.samples.ecosystem import FRAMES, Patch, sample, still
from benchmarks.samples.tiny_models import random_motion, tiny_patcher, video_latent
from lamp.errors import LampError
from lamp.hosts.comfy.run import KEY
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode"),
    pytest.mark.slow,  # many of them
]


def brighter(latent: Tensor, **_: Any) -> Tensor:
    return latent * 1.1


PATCHES = (
    Patch("cfg", "CFGZeroStar", {}),
    Patch("cfg", "CFGNorm", {"strength": 1.0, "pre_cfg": False}),
    Patch("cfg", "CFGNorm", {"strength": 1.0, "pre_cfg": True}),
    Patch("nag", "NAGuidance", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    Patch("custom_sampler", "CFGOverride", {"cfg": 6.0, "start_percent": 0.0, "end_percent": 1.0}),
    Patch("latent", "LatentApplyOperationCFG", {"operation": brighter}),
    Patch("model_advanced", "ModelComputeDtype", {"dtype": "bf16"}),
)
MERGES = {
    "ModelMergeSimple": {"ratio": 0.5},
    "ModelSubtract": {"multiplier": 0.3},
    "ModelMergeBlocks": {"input": 0.5, "middle": 0.2, "out": 0.7},
}
each_patch = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.kind)


@pytest.fixture(autouse=True)
def nothing_is_left(plain: Any) -> Any:
    before = sample(plain)
    yield
    assert count_hooks(plain) == 0
    assert torch.equal(sample(plain), before)


def node_class(module: str, kind: str) -> Any:
    importlib.import_module("comfy_extras.nodes_post_processing")  # nodes_latent needs it first
    try:
        return getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), kind)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {kind}")


@each_patch
def test_a_patch_does_what_it_does_without_a_motion(plain: Any, patch: Patch) -> None:
    node_class(patch.module, patch.kind)
    alone, beside = sample(patch(plain)), sample(patch(still(plain)))
    assert worst(alone[1:], sample(plain)[1:]) > 1e-3
    assert torch.equal(beside[1:], alone[1:])


@each_patch
def test_patch_and_motion_show_together_in_either_order(
    plain: Any, file: MotionFile, patch: Patch
) -> None:
    node_class(patch.module, patch.kind)
    model = moving(plain, file)
    after, before = sample(patch(model)), sample(moving(patch(plain), file))
    assert torch.equal(after, before)
    assert torch.equal(after[0], video_latent(FRAMES)[0])
    assert worst(after, sample(model)) > 1e-3
    assert worst(after[1:], sample(patch(plain))[1:]) > 1e-2


@pytest.mark.parametrize("kind", MERGES)
def test_a_merged_model_keeps_the_motion_of_the_first(
    plain: Any, file: MotionFile, kind: str
) -> None:
    node = node_class("model_merging", kind)()
    merge = getattr(node, node.FUNCTION)
    other = tiny_patcher(seed=5)

    def merged(first: Any, second: Any) -> Any:
        return merge(model1=first, model2=second, **MERGES[kind])[0]

    expected = sample(moving(merged(plain, other), file))
    assert torch.equal(sample(merged(moving(plain, file), other)), expected)
    assert torch.equal(sample(merged(other, moving(plain, file))), sample(merged(other, plain)))


def guided(kind: str, *inputs: Any) -> Tensor:
    """A video by a guider of ComfyUI's custom sampling."""
    from comfy_extras import nodes_custom_sampler as custom

    guider = core(node_class("custom_sampler", kind), *inputs)[0]
    noise, sampler = core(custom.RandomNoise, SEED)[0], core(custom.KSamplerSelect, "euler")[0]
    sigmas = core(custom.BasicScheduler, inputs[0], "normal", 2, 1.0)[0]
    latent = {"samples": video_latent(FRAMES)}
    return core(custom.SamplerCustomAdvanced, noise, guider, sampler, sigmas, latent)[0]["samples"]


def test_a_dual_model_guider_uses_the_motion_of_its_first_model(
    plain: Any, file: MotionFile
) -> None:
    positive, negative = conditioning()
    model = moving(plain, file)
    expected = guided("CFGGuider", model, positive, negative, 5.0)
    for second in (model, plain):
        out = guided("DualModelGuider", model, positive, 5.0, second, negative)
        assert worst(out, expected) < 1e-5  # two calls in place of one of both prompts


def test_motion_guidance_works_with_another_checkpoint_in_a_dual_model_guider(
    plain: Any, file: MotionFile
) -> None:
    """e = e_n + cfg (e_p - e_n), where each prediction has the guidance of its own checkpoint."""
    positive, negative = conditioning()
    other = tiny_patcher(seed=9)
    model = moving(plain, file, motion_guidance=1.5)
    out = guided("DualModelGuider", model, positive, 1.0, other, negative)
    assert torch.equal(out, guided("CFGGuider", model, positive, negative, 1.0))
    out = guided("DualModelGuider", model, positive, 3.0, other, negative)
    plainly = guided("DualModelGuider", moving(plain, file), positive, 3.0, other, negative)
    assert out.isfinite().all() and 0.001 < worst(out, plainly) < 2


def test_a_motion_that_would_be_ignored_in_a_guider_is_refused(
    plain: Any, file: MotionFile
) -> None:
    from comfy.samplers import CFGGuider

    guider = CFGGuider(moving(plain, file))
    guider.uncond_model_patcher = moving(plain, random_motion(plain, seed=9))
    guider.set_conds(*conditioning())
    noise = torch.zeros_like(video_latent(FRAMES))
    with pytest.raises(LampError, match="model_negative"):
        guider.sample(noise, video_latent(FRAMES), None, torch.tensor([1.0, 0.0]))


def test_frames_at_different_noise_levels_are_refused(plain: Any, file: MotionFile) -> None:
    """As Train LoRA calls a MODEL: a batch of images, each with a level of its own."""
    from comfy.samplers import KSAMPLER, CFGGuider

    def training(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, **_: Any) -> Tensor:
        return model(x, torch.linspace(1.0, 7.5, len(x)), **extra_args)

    latent = video_latent(FRAMES)
    for model in (plain, moving(plain, file)):
        guider = CFGGuider(model)
        guider.set_conds(*conditioning())
        given = (torch.randn_like(latent), latent, KSAMPLER(training), torch.tensor([7.5, 0.0]))
        if model is plain:
            assert guider.sample(*given).isfinite().all()
        else:
            with pytest.raises(LampError, match=r"1 to 7\.5"):
                guider.sample(*given)


def test_a_model_that_is_split_over_gpus_is_refused(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file)
    split = model.clone()
    split.set_additional_models("multigpu", [plain.clone()])
    with pytest.raises(LampError, match="MultiGPU"):
        sample(split)
    (weights,) = model.get_additional_models_with_key(KEY)
    factory, inputs = weights.cached_patcher_init
    with pytest.raises(LampError, match="MultiGPU"):
        factory(*inputs)


@pytest.fixture
def two_gpus(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two devices, both of them the CPU, and a MODEL that can be loaded again for the second."""
    node_class("multigpu", "MultiGPUCFGSplitNode")
    devices = [torch.device("cpu"), torch.device("cpu", 1)]
    management = comfy.model_management
    monkeypatch.setattr(management, "get_all_torch_devices", lambda **_: devices)
    monkeypatch.setattr(management, "resolve_gpu_device_option", lambda _: devices[1])
    model = tiny_patcher()
    model.cached_patcher_init = (lambda **_: tiny_patcher(), ())
    return model


def test_split_over_gpus_names_the_node_in_either_order(two_gpus: Any, file: MotionFile) -> None:
    split = node_class("multigpu", "MultiGPUCFGSplitNode")
    # A call for each prompt in place of one of both.
    assert worst(sample(core(split, two_gpus, 2)[0]), sample(two_gpus)) < 1e-5
    with pytest.raises(LampError, match="MultiGPU"):
        core(split, moving(two_gpus, file), 2)
    with pytest.raises(LampError, match="MultiGPU"):
        sample(moving(core(split, two_gpus, 2)[0], file))


def test_a_device_may_be_selected_for_the_model(two_gpus: Any, file: MotionFile) -> None:
    select = node_class("multigpu", "SelectModelDeviceNode")
    expected = sample(moving(two_gpus, file))
    for model in (
        moving(core(select, two_gpus, "gpu:1")[0], file),
        core(select, moving(two_gpus, file), "gpu:1")[0],
        core(select, moving(two_gpus, file), "cpu")[0],
    ):
        assert torch.equal(sample(model), expected)
