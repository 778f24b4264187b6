"""Sampling runs of `benchmarks.speed`: the LAMP sampler, plain images, and the literal baseline."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from lamp.method.adain import AdaINSchedule
from lamp.method.layout import FrameLayout
from lamp.method.sampling import predict_guided, sample, with_first_frame
from lamp.method.schedule import ddim_step, ddim_timesteps, next_alpha

from .cases import Shape, inputs
from .models import Subject
from .timing import Runs, Share, timed

GUIDANCE = 12.5
_OFFICIAL = AdaINSchedule("official")


def sample_runs(subject: Subject, shape: Shape, steps: int, guidance: float = GUIDANCE) -> Runs:
    """One video of `steps` steps; at guidance 1 the prompt alone is shown."""
    noise, text = inputs(subject, shape, 2)
    noise, first = noise[: shape.frames], noise[shape.frames :][:1]
    uncond, cond = text.split(1)
    given = (noise, first, cond, uncond, steps, guidance)
    ours = _comfy_runs(subject, *given) if subject.patcher else _diffusers_runs(subject, *given)

    @torch.inference_mode()
    def literal() -> Tensor:
        prompts = torch.cat([uncond, cond]) if guidance != 1.0 else cond
        videos, alphas = len(prompts), subject.host.alphas_cumprod
        x = with_first_frame(noise, first)
        for step, timestep in enumerate(ddim_timesteps(steps)):
            video = x.transpose(0, 1)[None].repeat(videos, 1, 1, 1, 1)
            times = torch.full((videos,), timestep, device=x.device)
            predicted = subject.literal(video, times, prompts)
            eps = predicted[0]
            if videos == 2:
                eps = eps + guidance * (predicted[1] - eps)
            after = next_alpha(alphas, timestep, steps)
            stepped = ddim_step(x, eps.transpose(0, 1), alphas[timestep], after)
            x = _OFFICIAL.after_step(with_first_frame(stepped, first), step, steps, shape.frames)
        return _OFFICIAL.after_loop(x, shape.frames).float()

    return {**ours, "literal": literal}


def outside_the_unet(subject: Subject, shape: Shape, steps: int, repeats: int) -> float:
    """The share of sampling that is not spent in the image UNet and the motion's layers: hooks put
    on and off, AdaIN, noise, the sampler itself."""
    run = sample_runs(subject, shape, steps)["lamp"]
    unet, shares = subject.host.unet, []
    run()
    for _ in range(repeats):
        inside = Share(subject.device)
        with inside.watched([unet]):
            whole = timed(run, subject.device).of(subject.device)
        outside = whole - inside.inside
        if subject.patcher:  # there the hooks come and go inside of the UNet's call
            outside += steps * timed(lambda: _attach(subject, shape), subject.device).cpu
        shares.append(outside / whole)
    return statistics.median(shares)


def _attach(subject: Subject, shape: Shape) -> None:
    with subject.motion.attached(subject.host.unet, FrameLayout(shape.frames, 2)):
        pass


def _diffusers_runs(
    subject: Subject,
    noise: Tensor,
    first: Tensor,
    cond: Tensor,
    uncond: Tensor,
    steps: int,
    guidance: float,
) -> Runs:
    host = subject.host

    def lamp() -> Tensor:
        return sample(
            host, subject.motion, first, noise, cond, uncond,
            steps=steps, guidance=guidance, schedule=_OFFICIAL,
        ).float()  # fmt: skip

    @torch.inference_mode()
    def plain() -> Tensor:
        x, prompt = noise, cond.expand(len(noise), -1, -1)
        other = uncond.expand_as(prompt) if guidance != 1.0 else None
        for timestep in ddim_timesteps(steps):
            eps = predict_guided(host, x, timestep, prompt, other, guidance, FrameLayout(len(x)))
            after = next_alpha(host.alphas_cumprod, timestep, steps)
            x = ddim_step(x, eps, host.alphas_cumprod[timestep], after)
        return x

    return {"lamp": lamp, "plain": plain}


def _comfy_runs(
    subject: Subject,
    noise: Tensor,
    first: Tensor,
    cond: Tensor,
    uncond: Tensor,
    steps: int,
    guidance: float,
) -> Runs:
    import comfy.sample
    import comfy.samplers
    import comfy.utils

    from lamp.hosts.comfy.binding import BoundMotion, bind
    from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, make_sigmas, sample_video

    comfy.utils.set_progress_bar_enabled(False)
    bound = bind(subject.patcher, BoundMotion(subject.motion))
    latent_format = subject.patcher.model.latent_format
    latent = torch.zeros_like(noise)
    latent[:1] = latent_format.process_out(first)
    prompts: Any = ([[cond, {}]], [[uncond, {}]])

    @torch.inference_mode()
    def lamp() -> Tensor:
        made = sample_video(
            bound, *prompts, {"samples": latent}, seed=0, steps=steps, cfg=guidance,
            sampler="euler", scheduler=OFFICIAL_SCHEDULER, schedule=_OFFICIAL, noise=noise,
        )  # fmt: skip
        return latent_format.process_in(made["samples"]).float()

    @torch.inference_mode()
    def plain() -> Tensor:
        sigmas = make_sigmas(subject.patcher, OFFICIAL_SCHEDULER, steps)
        sampler = comfy.samplers.sampler_object("euler")
        return comfy.sample.sample_custom(
            subject.patcher, noise, guidance, sampler, sigmas, *prompts, latent, disable_pbar=True
        )

    return {"lamp": lamp, "plain": plain}
