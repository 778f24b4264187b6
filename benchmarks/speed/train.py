"""Training steps of `benchmarks.speed`: ours on cached latents, and the official way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.schedule import TRAIN_TIMESTEPS
from lamp.training.latents import SCALE
from lamp.training.loop import Training, noise_later_frames, predict_loss
from lamp.training.recipe import TrainConfig

from .cases import Shape, inputs
from .literal import LiteralUNet, Weights, is_trained
from .models import SIZES, TEXT_TOKENS, Subject, encoders
from .timing import Runs
from .train_memory import Case, random_clips


def train_runs(subject: Subject, shape: Shape, size: str) -> Runs:
    """One optimiser step: `lamp`; `literal` with latents and text at hand; `literal + encoders`
    with the VAE and the text encoder inside each step, as the official code has them."""
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

    return {
        "lamp": our_training(subject, shape, size).advance,
        "literal": lambda: literal.step(latents, text),
        "literal + encoders": lambda: literal.step(*encoded()),
    }


def our_training(subject: Subject, shape: Shape, size: str) -> Training:
    """The training loop of this project on clips of noise."""
    case = Case("sd15" if size == "full" else size, shape.frames, shape.height, shape.width)
    motion = Motion(subject.motion.sites, device=subject.device)
    motion.load_state_dict(subject.motion.state_dict())
    config = TrainConfig(steps=1000, frames=shape.frames)
    return Training(subject.host, motion, random_clips(case), config)


class LiteralTraining:
    """AdamW over all parameters of the literal baseline, of which the frozen ones have no gradient;
    the weights that are tuned are copies."""

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
    """Largest difference of a gradient between ours and the literal baseline, each relative to the
    largest value of that tensor, but for tensors whose gradient is nothing but rounding."""
    latents, text = inputs(subject, shape, 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4)).to(latents)
    given: Any = (latents, noise, torch.tensor([500], device=subject.device), text)
    literal = LiteralTraining(subject)
    literal.loss(*given).backward()
    with _tuned(subject.motion) as trained:
        layout = FrameLayout(shape.frames)
        with subject.motion.attached(subject.host.unet, layout):
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
