"""The host's own sampler nodes with every sampler and scheduler it lists, in few steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    SEED,
    conditioning,
    count_hooks,
    lamp_ksampler,
    moving,
    worst,
)
from benchmarks.samples.ecosystem import FRAMES, host_node, sample
from benchmarks.samples.tiny_models import video_latent
from lamp.method.adain import AdaINSchedule
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]
_PARTS = 8


def two_halves(model: Any, sampler: str) -> Tensor:
    """Two KSamplerAdvanced in a row, the second one going on from the noise that is left."""
    positive, negative = conditioning()
    latent = {"samples": video_latent(FRAMES)}
    for start, end in ((0, 1), (1, 10_000)):
        latent = host_node(
            "nodes",
            "KSamplerAdvanced",
            model=model,
            add_noise="disable" if start else "enable",
            noise_seed=SEED,
            steps=2,
            cfg=2.0,
            sampler_name=sampler,
            scheduler="normal",
            positive=positive,
            negative=negative,
            latent_image=latent,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="disable" if start else "enable",
        )
    return latent["samples"]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
def test_every_sampler_of_the_host(plain: Any, file: MotionFile, part: int) -> None:
    import comfy.samplers

    names = comfy.samplers.SAMPLER_NAMES
    assert len(names) > 30
    first, model = video_latent()[0], moving(plain, file)
    unmoved = moving(plain, file, strength=0.0)
    for name in names[part::_PARTS]:
        out = sample(model, name)
        assert out.isfinite().all() and torch.equal(out[0], first), name
        assert out[1:].std() > 0.1 and torch.equal(sample(model, name), out), name
        assert worst(sample(unmoved, name), out) > 1e-3, name
        halves = two_halves(model, name)
        assert halves.isfinite().all() and torch.equal(halves[0], first), name
        assert count_hooks(plain) == 0


def test_two_halves_are_the_whole(plain: Any, file: MotionFile) -> None:
    """For a sampler without memory; up to the way into the model's scale and out again."""
    model = moving(plain, file)
    assert worst(two_halves(model, "euler"), sample(model)) < 1e-5


def test_every_scheduler_of_the_host(plain: Any, file: MotionFile) -> None:
    import comfy.samplers

    first, model = video_latent()[0], moving(plain, file)
    outs = {}
    for name in comfy.samplers.SCHEDULER_NAMES:
        ours = lamp_ksampler(
            model, video_latent(FRAMES), scheduler=name, steps=2, schedule=AdaINSchedule("paper")
        )
        for out in (sample(model, scheduler=name), ours):
            assert out.isfinite().all() and torch.equal(out[0], first), name
        outs[name] = ours
    assert len({tuple(out[1].flatten()[:4].tolist()) for out in outs.values()}) > 3


@pytest.mark.parametrize(
    "sampler", ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "lcm"]
)
def test_noise_drawn_by_samplers_is_not_shared(plain: Any, file: MotionFile, sampler: str) -> None:
    """Only the starting noise is shared (paper eq. 6). What is drawn anew replaces noise that was
    taken out, whose strength the sampler knows: it has unit variance, and every frame its own."""
    import comfy.samplers
    from comfy.k_diffusion.sampling import get_ancestral_step

    states: dict[float, Tensor] = {}

    def nothing_to_do(unet: Any, args: dict[str, Any]) -> Tensor:
        unet(args["input"][..., :8, :8], args["timestep"], **args["c"])  # its checks alone count
        states.setdefault(args["timestep"][0].item(), args["input"].clone())
        return args["input"]  # as if it were clean: only noise moves the state

    model = moving(plain, file).clone()
    model.set_model_unet_function_wrapper(nothing_to_do)
    sample(model, sampler, samples=video_latent(FRAMES, 40, 40), steps=2, cfg=1.0)
    levels = comfy.samplers.KSampler(model, 2, "cpu", sampler, "normal", 1.0).sigmas
    before, after = levels[:2].tolist()
    up = after if sampler == "lcm" else float(get_ancestral_step(before, after)[1])
    start = states[before][1:] / before
    anew = (states[after] - states[before])[1:] / up
    for noise, variance, covariance in ((start, 0.8**2 + 0.2**2, 0.2**2), (anew, 1.0, 0.0)):
        expected = torch.full((FRAMES - 1, FRAMES - 1), covariance).fill_diagonal_(variance)
        assert (torch.cov(noise.flatten(1)) - expected).abs().max() < 0.05
