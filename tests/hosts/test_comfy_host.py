"""A motion inside ComfyUI's own sampling: what it may change, and what it must leave alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    SEED,
    STEPS,
    advanced,
    conditioning,
    core,
    count_hooks,
    ksampler,
    lamp_ksampler,
    moving,
    worst,
)
from benchmarks.samples.tiny_models import random_motion, tiny_patcher, video_latent
from lamp.method.adain import AdaINSchedule
from lamp.method.masks import MotionMask
from lamp.motion_file.file import MotionFile

SAMPLERS = [
    "euler",
    "ddim",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler_ancestral",
    "heun",
    "lcm",
    "uni_pc",
]
pytestmark = pytest.mark.usefixtures("comfy", "in_inference_mode", "no_hook_is_left")


# --- frame 1 ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_frame_1_is_the_given_one_bit_for_bit(
    plain: Any, file: MotionFile, sampler: str, cfg: float
) -> None:
    from comfy_extras.nodes_custom_sampler import BasicScheduler, KSamplerSelect

    model = moving(plain, file)
    out = ksampler(model, sampler, cfg)
    assert torch.equal(out[0], video_latent()[0])
    assert out.isfinite().all() and out[1:].std() > 0.1

    sigmas = core(BasicScheduler, model, "normal", STEPS, 1.0)[0]
    chosen = core(KSamplerSelect, sampler)[0]
    custom = advanced(model, chosen, sigmas, cfg=cfg)
    assert torch.equal(custom[0], video_latent()[0])
    if sampler != "uni_pc":  # the host's KSampler leaves out one noise level for it
        assert torch.equal(custom, out)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_frame_1_stays_under_adain(plain: Any, file: MotionFile, sampler: str) -> None:
    schedule = AdaINSchedule("off" if sampler == "uni_pc" else "official")
    out = lamp_ksampler(moving(plain, file), sampler=sampler, schedule=schedule)
    assert torch.equal(out[0], video_latent()[0])
    assert out.isfinite().all()


def test_a_part_of_the_noise_and_a_mask_leave_frame_1_alone(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file)
    full = video_latent()
    full[1:] = full[:1]
    mask = torch.ones(6, 1, 8, 8)
    mask[:, :, :, 4:] = 0.0
    positive, negative = conditioning()
    from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, sample_video

    for mode in ("off", "official"):
        out = sample_video(
            model,
            positive,
            negative,
            {"samples": full, "noise_mask": mask},
            seed=SEED,
            steps=STEPS,
            cfg=5.0,
            sampler="ddim",
            scheduler=OFFICIAL_SCHEDULER,
            schedule=AdaINSchedule(mode),  # type: ignore[arg-type]
        )["samples"]
        assert torch.equal(out[0], full[0])
        # what the mask protects comes back, up to the way into the model's scale and out again
        assert worst(out[:, :, :, 4:], full[:, :, :, 4:]) < 1e-6
        assert worst(out[1:, :, :, :4], full[1:, :, :, :4]) > 0.1
    half = lamp_ksampler(model, full, denoise=0.5)
    assert torch.equal(half[0], full[0]) and not torch.equal(half[1], full[1])
    assert torch.equal(lamp_ksampler(model, full, denoise=0.0), full)


# --- other patches --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lora_before_or_after_gives_the_same(plain: Any, file: MotionFile) -> None:
    from comfy.sd import load_lora_for_models

    generator = torch.Generator().manual_seed(5)
    lora = {}
    for name, weight in plain.model.state_dict().items():
        if name.endswith(("attn1.to_q.weight", "attn2.to_k.weight", "in_layers.2.weight")):
            inputs = weight[0].numel()
            up = torch.randn(weight.shape[0], 2, generator=generator)
            down = torch.randn(2, inputs, generator=generator) / inputs**0.5
            base = name.removesuffix(".weight")
            lora[f"{base}.lora_up.weight"] = up[..., None, None] if weight.ndim == 4 else up
            lora[f"{base}.lora_down.weight"] = (
                down.reshape(2, *weight.shape[1:]) if weight.ndim == 4 else down
            )
    if not any("in_layers" in name for name in lora):
        pytest.fail("the LoRA reaches no convolution")

    def with_lora(model: Any) -> Any:
        return load_lora_for_models(model, None, lora, 0.5, 0.0)[0]

    without = ksampler(moving(plain, file))
    before = ksampler(moving(with_lora(plain), file))
    after = ksampler(with_lora(moving(plain, file)))
    assert torch.equal(before, after)
    assert worst(before, without) > 0.05
    assert torch.equal(ksampler(moving(plain, file)), without)


# --- how much motion ------------------------------------------------------------------------------


@pytest.mark.slow
def test_strength_0_equals_a_new_motion(plain: Any, file: MotionFile) -> None:
    fresh = random_motion(plain, size=0.0)
    still = ksampler(moving(plain, fresh))
    assert torch.equal(ksampler(moving(plain, file, strength=0.0)), still)
    full = worst(ksampler(moving(plain, file)), still)
    half = worst(ksampler(moving(plain, file, strength=0.5)), still)
    assert full > half > 0.01


def test_a_new_motion_does_not_change_the_image_model(plain: Any) -> None:
    fresh = random_motion(plain, size=0.0)
    model = moving(plain, fresh, groupnorm="frame", first_frame=False, alpha=0.0)
    assert torch.equal(ksampler(model)[1:], ksampler(plain)[1:])


@pytest.mark.parametrize(
    ("start", "end", "active"), [(0.0, 1.0, 4), (0.0, 0.4, 2), (0.4, 1.0, 2), (0.9, 1.0, 1)]
)
def test_the_motion_acts_between_its_two_percentages(
    plain: Any,
    file: MotionFile,
    monkeypatch: pytest.MonkeyPatch,
    start: float,
    end: float,
    active: int,
) -> None:
    from lamp.hosts.comfy.run import Run

    strengths: list[float] = []
    attending = Run.attending

    def recorded(run: Run, unet: Any, motions: Any, *args: Any, **options: Any) -> Any:
        strengths.extend(acting.strength for acting in motions)
        return attending(run, unet, motions, *args, **options)

    monkeypatch.setattr(Run, "attending", recorded)
    ksampler(moving(plain, file, start_percent=start, end_percent=end), cfg=1.0)
    assert len(strengths) == STEPS
    expected = [1.0] * active + [0.0] * (STEPS - active)
    assert strengths == (expected if start == 0.0 else expected[::-1])


# --- what must be left alone --------------------------------------------------------------------


def test_the_plain_model_is_unchanged_after_a_run(plain: Any, file: MotionFile) -> None:
    before = ksampler(plain)
    ksampler(moving(plain, file))
    assert torch.equal(ksampler(plain), before)


@pytest.mark.slow
def test_two_motions_and_the_plain_model_take_turns(plain: Any, file: MotionFile) -> None:
    other = random_motion(plain, seed=2)
    models = [moving(plain, file), plain, moving(plain, other)]
    first = [ksampler(model) for model in models]
    again = [ksampler(model) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert worst(first[0], first[2]) > 0.01


def test_a_second_run_equals_the_first(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file)
    schedule = AdaINSchedule("paper")
    runs = [lamp_ksampler(model, schedule=schedule) for _ in range(2)]
    assert torch.equal(*runs)


def stop_in_the_middle(model: Any, how: Callable[[], None]) -> None:
    """Run the stock sampler, calling `how` while the UNet is at work in its second step."""
    calls = []

    def in_attention(q: Tensor, k: Tensor, v: Tensor, options: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            assert count_hooks(model) > 0
            how()
        return q, k, v

    model = model.clone()
    model.set_model_attn2_patch(in_attention)
    ksampler(model)


@pytest.mark.slow
def test_nothing_remains_after_an_error(plain: Any, file: MotionFile) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory, say")

    before = ksampler(plain)
    model = moving(plain, file)
    good = ksampler(model)
    with pytest.raises(RuntimeError, match="say"):
        stop_in_the_middle(model, fail)
    assert count_hooks(plain) == 0
    assert torch.equal(ksampler(plain), before)
    assert torch.equal(ksampler(model), good)


def test_nothing_remains_after_a_cancel(plain: Any, file: MotionFile) -> None:
    import comfy.model_management as management

    def cancel() -> None:
        management.interrupt_current_processing(True)
        management.throw_exception_if_processing_interrupted()

    before = ksampler(plain)
    model = moving(plain, file)
    with pytest.raises(management.InterruptProcessingException):
        stop_in_the_middle(model, cancel)
    assert count_hooks(plain) == 0
    assert torch.equal(ksampler(plain), before)


# --- bad input ----------------------------------------------------------------------------------


def refused(model: Any, samples: Tensor, named: str) -> None:
    from lamp.errors import LampError

    with pytest.raises(LampError, match=named):
        ksampler(model, samples=samples)


def test_a_latent_that_is_not_a_video_is_refused(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file)
    refused(model, video_latent(1), r"2 frames.*\(1, 4, 8, 8\)")
    refused(model, torch.zeros(6, 4, 8, 8), "Frame 1")
    refused(model, torch.ones(6, 16, 8, 8), "16 channels.*4")
    broken = video_latent()
    broken[0, 0, 0, 0] = float("nan")
    refused(model, broken, "NaN")


@pytest.mark.slow
def test_motions_on_one_model_add_up(plain: Any, file: MotionFile) -> None:
    """Residuals add up: a motion at 0.5 and again at 0.3 is the motion at 0.8."""
    once = ksampler(moving(plain, file, strength=0.8))
    lower = moving(plain, file, strength=0.5)
    half = ksampler(lower)
    both = moving(lower, file, strength=0.3)
    assert worst(ksampler(both), once) < 1e-5 < 1e-2 < worst(half, once)
    assert torch.equal(ksampler(lower), half)  # it stays as it was
    assert count_hooks(plain) == 0


@pytest.mark.slow
def test_motions_on_one_model_act_independently(plain: Any, file: MotionFile) -> None:
    """Each in its own place and time; in either order."""
    other = random_motion(plain, seed=5)
    left = torch.zeros(8, 8)
    left[:, :4] = 1.0
    options = {"strength": 0.7, "motion_mask": MotionMask(left, hold=0.0)}, {"end_percent": 0.5}
    one = moving(moving(plain, file, **options[0]), other, **options[1])
    two = moving(moving(plain, other, **options[1]), file, **options[0])
    assert worst(ksampler(one), ksampler(two)) < 1e-5
    alone = moving(moving(plain, file), other, strength=0.0)
    assert torch.equal(ksampler(alone), ksampler(moving(plain, file)))
    # One that is switched off has no say in what another holds.
    masked = moving(plain, file, motion_mask=MotionMask(left))
    assert torch.equal(ksampler(moving(masked, other, strength=0.0)), ksampler(masked))
    for single in (moving(plain, file, **options[0]), moving(plain, other, **options[1])):
        assert worst(ksampler(single), ksampler(one)) > 1e-3


def test_motions_with_different_groupnorm_modes_are_refused(plain: Any, file: MotionFile) -> None:
    from lamp.errors import LampError

    with pytest.raises(LampError, match="pooled.*frame"):
        moving(moving(plain, file), file, groupnorm="frame")


def test_context_windows_are_refused(plain: Any, file: MotionFile) -> None:
    from lamp.errors import LampError

    model = moving(plain, file)
    model.model_options["context_handler"] = object()
    with pytest.raises(LampError, match="Context Windows"):
        ksampler(model)


def test_another_familys_model_is_refused(plain: Any, file: MotionFile) -> None:
    from lamp.errors import IncompatibleModelError

    sd1 = dataclasses.replace(file, config=dataclasses.replace(file.config, family="sd1"))
    with pytest.raises(IncompatibleModelError, match="SD 1.x.*SD-XL"):
        moving(tiny_patcher(text_width=2048), sd1)
    with pytest.raises(IncompatibleModelError, match="SD 1.x.*SD 2.x"):
        moving(tiny_patcher(text_width=1024), sd1)
