"""AdaIN between the steps of every sampler that the host lists, and over parts of a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    SEED,
    advanced,
    conditioning,
    core,
    lamp_ksampler,
    moving,
    worst,
)
from benchmarks.samples.ecosystem import FRAMES, host_node
from benchmarks.samples.tiny_models import video_latent
from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]
PAPER = AdaINSchedule("paper")
# These choose their own noise levels, or rebuild their state from memory.
REFUSED = {
    "dpm_fast", "dpm_adaptive", "uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece"
}  # fmt: skip
World = Callable[[Tensor, Tensor], Tensor]


def statistics_of(x: Tensor, leader: Tensor) -> Tensor:
    """AdaIN by its definition, channel by channel (supplement alg. 1)."""
    out = x.clone()
    for channel, (content, style) in enumerate(zip(x, leader, strict=True)):
        scale = (style.var() + 1e-8).sqrt() / (content.var() + 1e-8).sqrt()
        out[channel] = (content - content.mean()) * scale + style.mean()
    return out


def after_step(x: Tensor, first: Tensor, timestep: int, sigma: Tensor) -> Tensor:
    """Frames 2.. of a state in the host's scale after a step from `timestep` to `sigma`."""
    scale = (1 + sigma**2).sqrt()
    frames = [first, *(x[1:] / scale)]
    begin = 2 if timestep > 401 else 1  # t > 20 of 50, whose timesteps are 20 t + 1
    leader = frames[begin - 1]
    return torch.stack(
        [x[0], *(scale * f for f in frames[1:begin])]
        + [scale * statistics_of(frame, leader) for frame in frames[begin:]]
    )


class Recorded:
    """A run on a MODEL whose predictions follow a simple law; the motion's layers run beside it."""

    def __init__(self, model: Any, sampler: Any, sigmas: Tensor, noise: Tensor, law: World) -> None:
        import comfy.sample

        self.states: list[Tensor] = []
        shown: list[Tensor] = []

        def predict(unet: Any, args: dict[str, Any]) -> Tensor:
            # What it gives is not used: a corner is enough for its checks.
            unet(args["input"][..., :4, :4], args["timestep"], **args["c"])
            rows = args["input"][: len(noise)]
            shown.append(rows.clone())
            out = law(rows, args["timestep"][: len(noise), None, None, None])
            return out.repeat(len(args["input"]) // len(noise), 1, 1, 1)

        model = model.clone()
        model.set_model_unet_function_wrapper(predict)
        positive, negative = conditioning()
        out = comfy.sample.sample_custom(
            model,
            noise,
            1.0,
            sampler,
            sigmas,
            positive,
            negative,
            video_latent(FRAMES),
            callback=lambda *_: self.states.append(shown[-1]),
            disable_pbar=True,
            seed=SEED,
        )
        self.states.append(model.model.process_latent_in(out))


@pytest.mark.parametrize("part", range(6))
def test_adain_follows_every_sampler_by_the_formula(
    plain: Any, file: MotionFile, part: int
) -> None:
    """Under a constant prediction D, or a constant derivative, a step is x -> k x + c for every
    sampler, noise that it draws included. k and c are measured without AdaIN, from two starts."""
    import comfy.samplers

    from lamp.hosts.comfy.noise import mark_shared
    from lamp.hosts.comfy.sampler import make_sampler, make_sigmas, with_adain

    model = moving(plain, file)
    sigmas = make_sigmas(model, "normal", 5)
    timesteps = model.get_model_object("model_sampling").timestep(sigmas[:-1]).tolist()
    first = model.model.process_latent_in(video_latent(FRAMES))[0]
    generator = torch.Generator().manual_seed(1)
    fixed, noise = torch.randn(2, FRAMES, 4, 8, 8, generator=generator)
    laws: list[World] = [lambda x, s: fixed, lambda x, s: x - s * fixed]
    for name in comfy.samplers.SAMPLER_NAMES[part::6]:
        if name in REFUSED:
            with pytest.raises(LampError, match=name):
                Recorded(model, make_sampler(name, PAPER), sigmas, mark_shared(noise), laws[0])
            continue
        errors = []
        for law in laws:
            stock = with_adain(comfy.samplers.sampler_object(name), AdaINSchedule("off"))
            one, two = (
                Recorded(model, stock, sigmas, mark_shared(scale * noise), law).states
                for scale in (1.0, 2.0)
            )
            ours = Recorded(model, make_sampler(name, PAPER), sigmas, mark_shared(noise), law)
            error, expected = 0.0, one[0]
            for step, timestep in enumerate(timesteps):
                factor = (two[step + 1] - one[step + 1]) / (two[step] - one[step]).where(
                    two[step] != one[step], torch.ones(())
                )
                moved = factor * (expected - one[step]) + one[step + 1]
                expected = after_step(moved, first, timestep, sigmas[step + 1])
                error = max(error, worst(ours.states[step + 1][1:], expected[1:]))
            errors.append(error)
            if error < 2e-3:  # k is measured in single precision; one law is enough
                break
        assert errors[-1] < 2e-3, (name, errors)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2", "dpmpp_2s_ancestral_cfg_pp"])
def test_samplers_without_memory_equal_their_single_steps(
    plain: Any, file: MotionFile, name: str
) -> None:
    """On the real model: one step of the stock sampler, AdaIN, the next step."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import DisableNoise

    from lamp.hosts.comfy.sampler import make_sampler, make_sigmas

    if "ancestral" in name:
        monkey = {"eta": 0.0}  # its noise would begin anew in each part
    else:
        monkey = {}
    model = moving(plain, file)
    sigmas = make_sigmas(model, "karras", 4)
    stock = comfy.samplers.sampler_object(name)
    stock.extra_options = dict(monkey)
    ours = make_sampler(name, PAPER)
    ours.extra_options = dict(monkey)
    whole = run(model, ours, sigmas)
    first = model.model.process_latent_in(video_latent())[0]
    timesteps = model.get_model_object("model_sampling").timestep(sigmas[:-1]).tolist()
    latent, noise = video_latent(), None
    for step, timestep in enumerate(timesteps):
        latent = run(model, stock, sigmas[step : step + 2], noise, latent)
        state = model.model.process_latent_in(latent)
        state = after_step(state, first, timestep, sigmas[step + 1])
        latent = torch.cat([latent[:1], model.model.process_latent_out(state)[1:]])
        noise = core(DisableNoise)[0]
    assert worst(whole[1:], latent[1:]) < 1e-4


def run(
    model: Any, sampler: Any, sigmas: Tensor, noise: Any = None, latent: Tensor | None = None
) -> Tensor:
    return advanced(model, sampler, sigmas, noise, latent=latent)


@pytest.mark.parametrize("scheduler", ["ddim (official)", "ddim_uniform", "karras", "normal"])
@pytest.mark.parametrize("mode", ["paper", "off"])
def test_parts_of_a_schedule_equal_the_whole(
    plain: Any, file: MotionFile, scheduler: str, mode: Any
) -> None:
    """Split Sigmas, also where one part has no step, the second one without new noise."""
    from comfy_extras.nodes_custom_sampler import DisableNoise, SplitSigmas

    from lamp.hosts.comfy.sampler import make_sampler, make_sigmas

    model = moving(plain, file)
    sigmas = make_sigmas(model, scheduler, 4)
    sampler = make_sampler("euler", AdaINSchedule(mode))
    whole = run(model, sampler, sigmas)
    for at in (0, 1, 3, 4):
        high, low = core(SplitSigmas, sigmas, at)[:2]
        halfway = run(model, sampler, high)
        parts = run(model, sampler, low, core(DisableNoise)[0], halfway)
        assert worst(parts, whole) < 1e-5, at


def test_with_adain_off_the_lamp_sampler_is_the_stock_one(plain: Any, file: MotionFile) -> None:
    """Over whole schedules of the host and over their parts, to the bit."""
    import comfy.samplers

    from lamp.hosts.comfy.sampler import make_sampler, make_sigmas

    model = moving(plain, file)
    for name, scheduler in (("euler", "ddim_uniform"), ("heun", "karras"), ("uni_pc", "normal")):
        sigmas = make_sigmas(model, scheduler, 4)
        stock, ours = comfy.samplers.sampler_object(name), make_sampler(name, AdaINSchedule("off"))
        for part in (sigmas, sigmas[:3], sigmas[2:]):
            # A part of a schedule begins with what the part before it made of all frames.
            latent = None if part[0] == sigmas[0] else torch.ones(6, 4, 8, 8)
            out, wanted = (run(model, each, part.clone(), latent=latent) for each in (ours, stock))
            assert torch.equal(out, wanted), (name, len(part))


def test_official_mode_in_a_part_of_a_schedule_needs_the_step_count(
    plain: Any, file: MotionFile
) -> None:
    from comfy_extras.nodes_custom_sampler import DisableNoise

    from lamp.hosts.comfy.sampler import make_sampler, make_sigmas

    model = moving(plain, file)
    official = AdaINSchedule("official")
    sampler = make_sampler("euler", official)
    sigmas = make_sigmas(model, "normal", 6)
    halfway = run(model, sampler, sigmas[:3])
    with pytest.raises(LampError, match="official"):
        run(model, sampler, sigmas[2:], core(DisableNoise)[0], halfway)
    told = make_sampler("euler", official, done=2)
    parts = run(model, told, sigmas[2:], core(DisableNoise)[0], halfway)
    assert worst(parts, run(model, sampler, sigmas)) < 1e-5


def test_a_latent_of_one_pixel_stays_finite(plain: Any, file: MotionFile) -> None:
    for mode in ("paper", "official"):
        out = lamp_ksampler(
            moving(plain, file), video_latent(4, 1, 1), schedule=AdaINSchedule(mode), cfg=1.0
        )
        assert out.isfinite().all()


@pytest.mark.parametrize("mode", ["off", "paper"])
@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        ("eps", "simple"),
        ("eps", "ddim (official)"),
        ("ModelSamplingSD3", "simple"),
        ("ModelSamplingSD3", "ddim (official)"),
        ("ModelSamplingFlux", "simple"),
    ],
)
def test_the_state_keeps_the_spread_of_its_noise_level(
    plain: Any, file: MotionFile, kind: str, mode: Any, scheduler: str
) -> None:
    """With a model that knows the clean video, of variance 1: sqrt(1 + s^2), and sqrt((1 - s)^2 +
    s^2) for flow models."""
    clean = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    clean = clean / clean.std(dim=(2, 3), keepdim=True)
    model, seen = moving(plain, file).clone(), []
    if kind != "eps":
        flux = {"max_shift": 1.15, "base_shift": 0.5, "width": 512, "height": 512}
        model = host_node("model_advanced", kind, model=model, shift=3.0, **flux)

    def knows(args: dict[str, Any]) -> Tensor:
        seen.append((float(args["sigma"][0]), args["input"][1:].std().item()))
        return clean.to(args["input"])

    model.set_model_sampler_post_cfg_function(knows)
    latent = torch.cat([clean[:1], torch.zeros_like(clean[1:])]) / 0.18215
    settings = {"steps": 10, "sampler": "euler", "scheduler": scheduler, "cfg": 3.0}
    out = lamp_ksampler(model, latent, schedule=AdaINSchedule(mode), **settings)
    for sigma, spread in seen:
        signal = 1.0 if kind == "eps" else 1.0 - sigma
        expected = (signal**2 + sigma**2) ** 0.5
        # Shared noise differs less between frames, the first phase of AdaIN has frame 1's spread.
        assert 0.75 * expected < spread < 1.1 * expected, (sigma, spread, expected)
    if mode == "off" and kind != "eps":  # whose official schedule begins and ends with noise
        expected = clean / 0.18215
        gain = (out[1:] * expected[1:]).sum() / expected[1:].square().sum()
        assert abs(gain - 1) < 6e-4
    assert worst(out, clean / 0.18215) < 0.1
