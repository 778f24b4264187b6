"""Few-shot tuning (paper sec. 3.3 and 4.1): only the motion learns, the image model is frozen."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import LampError
from .hosts import Host
from .latents import LatentClips
from .layout import FrameLayout
from .motion import Motion
from .sampling import with_first_frame
from .schedule import TRAIN_TIMESTEPS, add_noise

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
RATE_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a tuning run; the defaults are the published recipe.

    Raises LampError for a value outside its range.
    """

    steps: int = 30_000
    frames: int = 16
    batch: int = 1
    learning_rate: float = 3e-5
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    warmup: int = 0
    rate_schedule: str = "constant"
    ema: float = 0.0
    seed: int = 0
    groupnorm: str = "pooled"
    precision: str = "fp32"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 10**7),
            ("frames", 2, 1024),
            ("batch", 1, 1024),
            ("learning_rate", 1e-12, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("clip_norm", 1e-6, 1e6),
            ("warmup", 0, self.steps),
            ("ema", 0.0, 0.99999),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise LampError(f"{name} is {value}: choose a value from {low} to {high}.")
        for name, known in (("rate_schedule", RATE_SCHEDULES), ("precision", tuple(PRECISIONS))):
            if getattr(self, name) not in known:
                raise LampError(f"{name} is '{getattr(self, name)}': choose {' or '.join(known)}.")


@dataclass(frozen=True)
class StepReport:
    """What a listener learns after each step."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds_per_step: float

    @property
    def seconds_left(self) -> float:
        return (self.steps - self.step) * self.seconds_per_step


def predict_loss(
    host: Host, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor
) -> Tensor:
    """Paper eq. 4: frame 1 stays clean, the loss counts frames 2..l.

    The motion must be attached to the host's UNet.

    Args:
        latents, noise: `(b f) c h w`.
        timesteps: `b`, one for all frames of a video.
        text: `b n d`.
    """
    videos = timesteps.shape[0]
    noisy = noise_later_frames(latents, noise, host.alphas_cumprod[timesteps.cpu()])
    predicted = host.predict(noisy, timesteps, text)
    target = noise.unflatten(0, (videos, -1))[:, 1:]
    return nn.functional.mse_loss(predicted.float().unflatten(0, (videos, -1))[:, 1:], target)


def noise_later_frames(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """`(b f) c h w` with noise on frames 2.. (paper eq. 2); `alphas`: cumulative, `b`."""
    videos = alphas.shape[0]
    first = latents.unflatten(0, (videos, -1))[:, 0]
    per_frame = alphas.to(latents).repeat_interleave(latents.shape[0] // videos)
    return with_first_frame(add_noise(latents, noise, per_frame[:, None, None, None]), first)


def make_optimizer(motion: Motion, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the learned parts only; everything else in `motion` is frozen."""
    motion.requires_grad_(False)
    trained = list(motion.trained_parameters().values())
    for parameter in trained:
        parameter.requires_grad_(True)
    return torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Factor on the learning rate in step number `step` (from 0)."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.rate_schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def train(
    host: Host,
    motion: Motion,
    clips: LatentClips,
    config: TrainConfig,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> list[float]:
    """Tune `motion` in place and return the losses.

    An exception of `on_step` (a cancel, say) ends the run; `motion` then holds what was learned
    up to there.

    Args:
        host: the image model, frozen, on the device of `motion`.
        motion: fp32 parameters, initialised.

    Raises:
        LampError: a clip is shorter than `config.frames`, or the loss is no longer finite.
    """
    clips.check(config.frames)
    device = next(motion.parameters()).device
    draw = torch.Generator().manual_seed(config.seed)
    optimizer = make_optimizer(motion, config)
    trained = list(motion.trained_parameters().values())
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    average = _Average(trained, config.ema)
    layout = FrameLayout(config.frames, config.batch)
    losses: list[float] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(motion.attached(host.unet, layout, groupnorm=config.groupnorm))
        if config.checkpointing:
            stack.enter_context(_checkpointed(host.unet, motion))
        stack.callback(average.store)
        started = time.perf_counter()
        for batch in clips.batches(config.batch, config.steps, draw):
            step = len(losses)
            rate = config.learning_rate * learning_rate_factor(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            noise = torch.randn(batch.latents.shape, generator=draw).to(device)
            timesteps = torch.randint(TRAIN_TIMESTEPS, (config.batch,), generator=draw).to(device)
            with _autocast(device, config.precision):
                latents, text = batch.latents.to(device), batch.text.to(device)
                loss = predict_loss(host, latents, noise, timesteps, text)
            optimizer_step(loss, optimizer, trained, config.clip_norm, scaler)
            average.update()
            losses.append(_finite(loss, step, rate))
            seconds = (time.perf_counter() - started) / len(losses)
            on_step(StepReport(step + 1, config.steps, losses[-1], rate, seconds))
    return losses


def optimizer_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    parameters: list[nn.Parameter],
    clip_norm: float = 1.0,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Backward, clip the norm of all gradients together, step; returns the norm before clipping."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


class _Average:
    """Exponential moving average of the parameters; `store` puts it in their place."""

    def __init__(self, parameters: list[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay, self._updates = parameters, decay, 0
        self._average = [p.detach().clone() for p in parameters] if decay else []

    @torch.no_grad()
    def update(self) -> None:
        if self._average:
            self._updates += 1
            # The first values weigh less, so that a short run is not drawn to its start.
            decay = min(self._decay, self._updates / (self._updates + 9))
            current = [p.detach() for p in self._parameters]
            torch._foreach_lerp_(self._average, current, 1 - decay)

    @torch.no_grad()
    def store(self) -> None:
        for parameter, average in zip(self._parameters, self._average, strict=False):
            parameter.copy_(average)


def _finite(loss: Tensor, step: int, rate: float) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise LampError(
            f"The loss became {value} in step {step + 1} at learning rate {rate:g}: nothing "
            "learned after it would be of use. Lower the learning rate, or choose precision fp32."
        )
    return value


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtype = PRECISIONS[precision]
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


@contextlib.contextmanager
def _checkpointed(unet: nn.Module, motion: Motion) -> Iterator[None]:
    """Recompute the residual and transformer blocks in the backward pass instead of keeping their
    activations. Hooks cannot do that, so the blocks' `forward` is wrapped while the run lasts."""
    from torch.utils.checkpoint import checkpoint

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    sites = motion.sites
    names = [*sites.resnets, *(block.module for block in sites.blocks)]
    blocks = [unet.get_submodule(name) for name in names]
    try:
        for block in blocks:
            block.forward = wrap(block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
