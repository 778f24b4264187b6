"""The numbers of sampling in ComfyUI: the reference sampler's, and the noise mixed once."""

from __future__ import annotations

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
    lamp_ksampler,
    moving,
    worst,
)
from benchmarks.samples.tiny_models import reference, shallow_config, text, video_latent
from lamp.method.adain import AdaINSchedule
from lamp.method.noise import draw_noise, share_noise
from lamp.motion_file.file import MotionFile

pytestmark = [pytest.mark.usefixtures("comfy", "in_inference_mode"), pytest.mark.shallow]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "steps"), [("official", 34), ("paper", 12), ("off", 12)])
def test_the_sampler_equals_the_reference_on_diffusers(
    plain: Any, file: MotionFile, mode: Any, steps: int
) -> None:
    from lamp.method.sampling import sample

    host, motion = reference(file, shallow_config())
    noise = share_noise(draw_noise(6, 4, 8, 8, SEED), 0.2)
    first = video_latent()[:1] * 0.18215
    schedule = AdaINSchedule(mode)
    expected = sample(
        host, motion, first, noise, text(1), text(2), steps=steps, guidance=5.0, schedule=schedule
    )
    ours = lamp_ksampler(moving(plain, file), steps=steps, schedule=schedule) * 0.18215
    assert worst(ours, expected) < 1e-4


def test_stock_samplers_mix_the_noise_as_ours_does(plain: Any, file: MotionFile) -> None:
    noise = draw_noise(6, 4, 8, 8, 11)
    stock = custom_noise(moving(plain, file, alpha=0.2), noise.clone())
    ours = lamp_ksampler(
        moving(plain, file), scheduler="ddim_uniform", noise=share_noise(noise, 0.2)
    )
    assert worst(ours, stock) < 1e-5
    unmixed = custom_noise(moving(plain, file, alpha=0.0), noise.clone())
    assert worst(unmixed, stock) > 0.05


def custom_noise(model: Any, noise: Tensor) -> Tensor:
    import comfy.sample
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "ddim_uniform", STEPS)
    euler = comfy.samplers.sampler_object("euler")
    positive, negative = conditioning()
    return comfy.sample.sample_custom(
        model, noise, 5.0, euler, sigmas, positive, negative, video_latent(), disable_pbar=True
    )


@pytest.mark.slow
def test_shared_noise_is_not_mixed_twice(plain: Any, file: MotionFile) -> None:
    from comfy_extras.nodes_custom_sampler import KSamplerSelect

    from lamp.hosts.comfy.noise import SharedNoise
    from lamp.hosts.comfy.sampler import make_sigmas

    sampler = core(KSamplerSelect, "euler")[0]
    noise = SharedNoise(SEED, 0.2)
    runs = {
        alpha: advanced(model, sampler, make_sigmas(model, "normal", STEPS), noise)
        for alpha, model in ((a, moving(plain, file, alpha=a)) for a in (0.0, 0.2, 0.9))
    }
    assert torch.equal(runs[0.0], runs[0.2]) and torch.equal(runs[0.0], runs[0.9])

    class Unmarked:
        seed = SEED

        def generate_noise(self, latent: Any) -> Tensor:
            return noise.generate_noise(latent).clone()

    model = moving(plain, file, alpha=0.2)
    twice = advanced(model, sampler, make_sigmas(model, "normal", STEPS), Unmarked())
    assert worst(twice, runs[0.2]) > 0.01


def test_given_noise_and_the_seeds_own_noise_are_the_same(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file, alpha=0.2)
    own = lamp_ksampler(model)
    given = lamp_ksampler(model, noise=share_noise(draw_noise(6, 4, 8, 8, SEED), 0.2))
    assert torch.equal(own, given)


def test_other_frames_of_the_latent_do_not_leak_at_full_denoise(
    plain: Any, file: MotionFile
) -> None:
    model = moving(plain, file)
    filled = video_latent()
    filled[1:] = 5.0
    assert torch.equal(lamp_ksampler(model, filled), lamp_ksampler(model))
