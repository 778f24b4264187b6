"""Motion guidance in ComfyUI's samplers, against runs without it that are combined by hand.

One Euler step from the first noise level to 0 returns the prediction, so the results of such runs
combine as predictions do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import conditioning, lamp_ksampler, moving, worst
from benchmarks.samples.ecosystem import FRAMES, host_node, sample
from benchmarks.samples.tiny_models import text, video_latent
from benchmarks.samples.tiny_patches import tiny_control
from lamp.errors import LampError
from lamp.method.windows import Windows
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode", "no_hook_is_left"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]


def one_step(model: Any, prompt: int = 1, **how: Any) -> Tensor:
    """The prediction of all frames; with cfg 1 that of one prompt alone."""
    positive = [[text(prompt), {}]]
    return sample(model, steps=1, **{"cfg": 1.0, "positive": positive, **how})


def hinted(plain: Any, hint: Tensor) -> Any:
    return host_node(
        "nodes", "ControlNetApply", conditioning=conditioning()[0],
        control_net=tiny_control(plain), image=hint, strength=1.0,
    )  # fmt: skip


def identity(args: dict[str, Any]) -> Tensor:
    return args["denoised"]


def reads_predictions(model: Any) -> Any:
    """The MODEL with a node that reads the unconditional prediction and changes nothing."""
    model = model.clone()
    model.set_model_sampler_post_cfg_function(identity)
    return model


def test_without_a_negative_prompt(plain: Any, file: MotionFile) -> None:
    on, off = one_step(moving(plain, file)), one_step(moving(plain, file, strength=0.0))
    guided = one_step(moving(plain, file, motion_guidance=2.5))
    assert worst(guided, torch.lerp(off, on, 2.5)) < 1e-4 < 0.01 < worst(guided, on)


@pytest.mark.parametrize("calls", [1, 2])
def test_the_negative_prompts_part_gets_less_of_the_motion(
    plain: Any, file: MotionFile, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Also where memory only lets ComfyUI call the UNet for one prompt at a time."""
    counted: list[int] = []

    def count(unet: Any, args: dict[str, Any]) -> Tensor:
        counted.append(len(args["input"]))
        return unet(args["input"], args["timestep"], **args["c"])

    conditioned = one_step(moving(plain, file))
    base = one_step(moving(plain, file, strength=0.75), prompt=2)
    model = moving(plain, file, motion_guidance=2.0)
    model.set_model_unet_function_wrapper(count)
    if calls == 2:
        monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)
    guided = one_step(model, cfg=5.0)
    assert worst(guided, base + 5.0 * (conditioned - base)) < 1e-4
    assert worst(guided, one_step(moving(plain, file), cfg=5.0)) > 0.01
    assert len(counted) == calls


def test_a_node_that_reads_both_predictions_gets_whole_ones(plain: Any, file: MotionFile) -> None:
    runs = [one_step(moving(plain, file, strength=s), cfg=5.0) for s in (0.0, 1.0)]
    guided = one_step(reads_predictions(moving(plain, file, motion_guidance=2.0)), cfg=5.0)
    assert worst(guided, torch.lerp(*runs, 2.0)) < 1e-4


def test_more_than_cfg(plain: Any, file: MotionFile) -> None:
    runs = [one_step(moving(plain, file, strength=s), cfg=1.5) for s in (0.0, 1.0)]
    guided = one_step(moving(plain, file, motion_guidance=3.0), cfg=1.5)
    assert worst(guided, torch.lerp(*runs, 3.0)) < 1e-4


def test_hints_of_a_controlnet_reach_both_calls(plain: Any, file: MotionFile) -> None:
    hint = torch.rand(FRAMES, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    how = {"positive": hinted(plain, hint)}
    runs = [one_step(moving(plain, file, strength=s), **how) for s in (0.0, 1.0)]
    guided = one_step(moving(plain, file, motion_guidance=2.0), **how)
    assert worst(guided, torch.lerp(*runs, 2.0)) < 1e-4
    assert worst(guided, one_step(moving(plain, file, motion_guidance=2.0))) > 1e-3


def test_several_motions_are_guided_together(plain: Any, file: MotionFile) -> None:
    def twice(**how: Any) -> Any:
        return moving(moving(plain, file, **how), file, **how)

    runs = [one_step(twice(strength=s)) for s in (0.0, 0.5)]
    guided = one_step(twice(strength=0.5, motion_guidance=2.0))
    assert worst(guided, torch.lerp(*runs, 2.0)) < 1e-4
    with pytest.raises(LampError, match="motion_guidance.*2"):
        moving(moving(plain, file, motion_guidance=2.0), file)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_scale_one_changes_no_bit(plain: Any, file: MotionFile, cfg: float) -> None:
    runs = [sample(moving(plain, file, **how), cfg=cfg) for how in ({}, {"motion_guidance": 1.0})]
    assert torch.equal(*runs)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_windows_that_hold_the_whole_video(plain: Any, file: MotionFile, cfg: float) -> None:
    from lamp.hosts.comfy.windows import with_windows

    model = moving(plain, file, motion_guidance=2.0)
    windowed = with_windows(model, Windows(4, 2))
    assert torch.equal(sample(model, cfg=cfg), sample(windowed, cfg=cfg))
    longer = {"samples": video_latent(9), "cfg": cfg}
    assert sample(windowed, **longer).isfinite().all()


@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_the_same_video_as_the_reference_sampler(plain: Any, file: MotionFile, cfg: float) -> None:
    from benchmarks.samples.comfy_runs import SEED
    from benchmarks.samples.tiny_models import reference, shallow_config
    from lamp.method import sampling
    from lamp.method.adain import AdaINSchedule
    from lamp.method.noise import draw_noise, share_noise

    schedule = AdaINSchedule("paper")
    expected = sampling.sample(
        *reference(file, shallow_config()),
        video_latent()[:1] * 0.18215, share_noise(draw_noise(6, 4, 8, 8, SEED), 0.2),
        text(1), text(2), steps=12, guidance=cfg, schedule=schedule, motion_guidance=2.0,
    )  # fmt: skip
    model = moving(plain, file, motion_guidance=2.0)
    ours = lamp_ksampler(model, steps=12, cfg=cfg, schedule=schedule) * 0.18215
    assert worst(ours, expected) < 1e-4


def test_a_cache_that_answers_for_the_unet_is_refused(plain: Any, file: MotionFile) -> None:
    """EasyCache and its like keep an answer for an input that hardly differs from the last."""
    from comfy.patcher_extension import WrappersMP

    kept: list[Tensor] = []

    def cached(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not kept or len(kept[0]) != len(x):
            kept[:] = [executor(x, *args, **kwargs)]
        return kept[0]

    model = moving(plain, file, motion_guidance=2.0)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cache", cached)
    with pytest.raises(LampError, match="motion_guidance.*2"):
        sample(model, cfg=1.0)


@pytest.mark.parametrize("cfg", [1.0, 1.5, 4.0])
def test_a_node_that_changes_cfg_for_a_step(plain: Any, file: MotionFile, cfg: float) -> None:
    """CFG Override of newer versions, behind the motion."""
    from comfy.patcher_extension import WrappersMP

    def override(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        guider = executor.class_obj
        before, guider.cfg = guider.cfg, cfg
        try:
            return executor(*args, **kwargs)
        finally:
            guider.cfg = before

    def overridden(given: float) -> Tensor:
        model = moving(plain, file, motion_guidance=2.0)
        if given != cfg:
            model.add_wrapper(WrappersMP.PREDICT_NOISE, override)
        return one_step(model, cfg=given)

    assert worst(overridden(9.0), overridden(cfg)) < 1e-5


@pytest.mark.parametrize("told", [True, False])
def test_two_tiles_in_one_call(plain: Any, file: MotionFile, told: bool) -> None:
    """The order of videos in such a batch is not known, nor is it without ComfyUI's list."""

    def tiled(unet: Any, args: dict[str, Any]) -> Tensor:
        x, rest = args["input"], dict(args["c"])
        if not told:
            options = dict(rest["transformer_options"])
            rest["transformer_options"] = options
            del options["cond_or_uncond"]
        halves = torch.cat(x.chunk(2, dim=-1))
        rest["c_crossattn"] = rest["c_crossattn"].repeat(2, 1, 1)
        out = unet(halves, args["timestep"].repeat(2), **rest)
        return torch.cat(out.chunk(2), dim=-1)

    def moved(**how: Any) -> Tensor:
        model = moving(plain, file, **how)
        model.set_model_unet_function_wrapper(tiled)
        return one_step(model, cfg=5.0)

    runs = [moved(strength=strength) for strength in (0.0, 1.0)]
    assert worst(moved(motion_guidance=2.0), torch.lerp(*runs, 2.0)) < 1e-4
