"""The timed programs: `lamp` (this project), `plain` (the image UNet alone), `literal`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lamp.method.adain import AdaINSchedule
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.sampling import predict_guided, sample, with_first_frame
from lamp.method.schedule import TRAIN_TIMESTEPS, ddim_step, ddim_timesteps, next_alpha
from lamp.training.latents import SCALE
from lamp.training.loop import Training, noise_later_frames, predict_loss
from lamp.training.recipe import TrainConfig

from .literal import LiteralUNet, Weights, is_trained
from .measure import Runs, time_inside, timed
from .models import SIZES, TEXT_TOKENS, Shape, Subject, encoders, inputs, random_clips

# Relative to the largest value: lamp and literal sum in a different order.
EQUAL = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
GUIDANCE = 12.5
_OFFICIAL = AdaINSchedule("official")


def difference(runs: Runs) -> float:
    """Between lamp and literal, relative to the largest value."""
    ours, literal = runs["lamp"](), runs["literal"]()
    return ((ours - literal).abs().max() / literal.abs().max()).item()


# --- one call ---------------------------------------------------------------------------------


def forward_runs(subject: Subject, shape: Shape) -> Runs:
    """One guided call of the UNet: prompt and empty prompt in one batch."""
    videos, host = 2 * shape.videos, subject.host
    x, text = inputs(subject, shape, videos)
    timesteps = torch.full((videos,), 500, device=subject.device)

    @torch.inference_mode()
    def lamp() -> Tensor:
        with subject.motion.attached(host.unet, FrameLayout(shape.frames, videos)):
            return host.predict(x, timesteps, text)

    @torch.inference_mode()
    def plain() -> Tensor:
        return host.predict(x, timesteps, text)

    @torch.inference_mode()
    def literal() -> Tensor:
        video = x.unflatten(0, (videos, -1)).transpose(1, 2)
        predicted = subject.literal(video.contiguous(), timesteps, text)
        return predicted.transpose(1, 2).flatten(0, 1).float()

    return {"lamp": lamp, "plain": plain, "literal": literal}


# --- sampling ---------------------------------------------------------------------------------


def sample_runs(subject: Subject, shape: Shape, steps: int, guidance: float = GUIDANCE) -> Runs:
    """One video in `steps` steps; guidance 1 evaluates the prompt alone."""
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


def _diffusers_runs(
    subject: Subject, noise: Tensor, first: Tensor, cond: Tensor, uncond: Tensor, steps: int,
    guidance: float,
) -> Runs:  # fmt: skip
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
    subject: Subject, noise: Tensor, first: Tensor, cond: Tensor, uncond: Tensor, steps: int,
    guidance: float,
) -> Runs:  # fmt: skip
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


def outside_the_unet(subject: Subject, shape: Shape, steps: int, repeats: int) -> float:
    """The share of sampling time outside the image UNet and the motion's layers: attaching hooks,
    AdaIN, noise, the sampler itself."""
    run = sample_runs(subject, shape, steps)["lamp"]
    run()
    shares = []
    for _ in range(repeats):
        with time_inside(subject.host.unet, subject.device) as inside:
            whole = timed(run, subject.device).of(subject.device)
        outside = whole - sum(inside)
        if subject.patcher:  # there hooks are attached inside the call of the UNet
            outside += steps * timed(lambda: _attach(subject, shape), subject.device).cpu
        shares.append(outside / whole)
    return statistics.median(shares)


def _attach(subject: Subject, shape: Shape) -> None:
    with subject.motion.attached(subject.host.unet, FrameLayout(shape.frames, 2)):
        pass


# --- training ---------------------------------------------------------------------------------


def train_runs(subject: Subject, shape: Shape, size: str) -> Runs:
    """One optimiser step: `lamp`; `literal` with latents and text embeddings precomputed;
    `literal + encoders` with VAE and text encoder in each step, as in the official code."""
    latents, text = inputs(subject, shape, 1)
    height, width = (side * SIZES[size].stride for side in (shape.height, shape.width))
    pixels = torch.randn(shape.frames, 3, height, width).to(latents)
    ids = torch.randint(400, (1, TEXT_TOKENS), device=subject.device)
    vae, text_encoder = encoders(size, subject.dtype, subject.device)
    literal = LiteralTraining(subject)

    @torch.no_grad()
    def encoded() -> tuple[Tensor, Tensor]:
        drawn = vae.encode(pixels).latent_dist.sample() * SCALE
        return drawn, text_encoder(ids)[0]

    config = TrainConfig(steps=1000, frames=shape.frames)
    return {
        "lamp": training_of(subject, size, shape, config).advance,
        "literal": lambda: literal.step(latents, text),
        "literal + encoders": lambda: literal.step(*encoded()),
    }


def training_of(
    subject: Subject, size: str, shape: Shape, config: TrainConfig, group: Any = None
) -> Training:
    """This project's training loop on clips of noise."""
    motion = Motion(subject.motion.sites, device=subject.device)
    motion.load_state_dict(subject.motion.state_dict())
    return Training(subject.host, motion, random_clips(size, shape), config, group)


class LiteralTraining:
    """AdamW over all parameters of the literal baseline, of which the frozen ones have no gradient;
    tuned weights are copies."""

    def __init__(self, subject: Subject) -> None:
        config = TrainConfig(steps=1)
        self.weights: Weights = {
            name: nn.Parameter(weight.detach().clone()) if is_trained(name) else weight
            for name, weight in subject.literal.weights.items()
        }
        self.unet = LiteralUNet(subject.config, self.weights)
        self._alphas = subject.host.alphas_cumprod
        self._optimizer = torch.optim.AdamW(
            self.weights.values(), config.learning_rate, config.betas,
            weight_decay=config.weight_decay,
        )  # fmt: skip

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Paper eq. 4 on `b c f h w`; latents and noise `(b f) c h w`."""
        videos = len(timesteps)
        noisy = noise_later_frames(latents, noise, self._alphas[timesteps.cpu()])
        video, target = (x.unflatten(0, (videos, -1)).transpose(1, 2) for x in (noisy, noise))
        predicted = self.unet(video, timesteps, text)
        return nn.functional.mse_loss(predicted[:, :, 1:].float(), target[:, :, 1:].float())

    def step(self, latents: Tensor, text: Tensor) -> None:
        """Forward, backward, clipping and update."""
        timesteps = torch.randint(TRAIN_TIMESTEPS, (len(text),), device=latents.device)
        self.loss(latents, torch.randn_like(latents), timesteps, text).backward()
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def gradient_difference(subject: Subject, shape: Shape) -> float:
    """Largest difference of a gradient between lamp and literal, relative to the largest value of
    its tensor; tensors whose gradient is only rounding count relative to the others."""
    latents, text = inputs(subject, shape, 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4)).to(latents)
    given: Any = (latents, noise, torch.tensor([500], device=subject.device), text)
    literal = LiteralTraining(subject)
    literal.loss(*given).backward()
    with _tuned(subject.motion) as trained:
        with subject.motion.attached(subject.host.unet, FrameLayout(shape.frames)):
            predict_loss(subject.host, *given).backward()
        pairs = [(p.grad, literal.weights[name].grad) for name, p in trained.items()]
    sizes = [theirs.abs().max().item() for _, theirs in pairs]
    rounding = 1e-3 * max(sizes)
    return max(
        (ours - theirs).abs().max().item() / max(size, rounding)
        for (ours, theirs), size in zip(pairs, sizes, strict=True)
    )


@contextmanager
def _tuned(motion: Motion) -> Iterator[dict[str, nn.Parameter]]:
    trained = motion.trained_parameters()
    try:
        for parameter in trained.values():
            parameter.requires_grad_(True)
        yield trained
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(False)
            parameter.grad = None
