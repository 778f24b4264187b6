"""Few-shot tuning (paper sec. 3.3 and 4.1): only the motion learns, the image model is frozen."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LampError
from ..method.host import Host
from ..method.layout import FrameLayout
from ..method.motion import Motion
from ..method.sampling import with_first_frame
from ..method.schedule import TRAIN_TIMESTEPS, add_noise
from .batches import Batch, Batches
from .gradient_check import GradientCheck
from .gradient_checkpointing import checkpointed
from .latents import LatentClips
from .low_rank import factorise
from .optimizers import (
    Average,
    ProcessGroup,
    QueryDecay,
    SingleProcess,
    apply_gradients,
    make_optimizer,
    set_rate,
)
from .recipe import PRECISIONS, TrainConfig, learning_rate_factor
from .validation import Validation, split_clips

PACE = 20
"""Steps whose mean time is the speed of a run: the first ones are slower, and a machine changes."""


@dataclass(frozen=True)
class StepReport:
    """What a listener learns after each step.

    ``seconds_per_step`` is the mean of the last `PACE` steps, without what is done between them;
    ``overhead_seconds`` what that will still take: samples and states.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds_per_step: float
    overhead_seconds: float = 0.0

    @property
    def seconds_left(self) -> float:
        return (self.steps - self.step) * self.seconds_per_step + self.overhead_seconds


def predict_loss(
    host: Host,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    text: Tensor,
    min_snr: float = 0.0,
    difference_loss: float = 0.0,
) -> Tensor:
    """Paper eq. 4: frame 1 stays clean, the loss counts frames 2..l.

    The motion must be attached to the host's UNet. Of a model that predicts v it is the
    loss on that, as in its own training.

    Args:
        latents, noise: `(b f) c h w`.
        timesteps: `b`, one for all frames of a video.
        text: as `Host.predict` takes it.
        min_snr: see `TrainConfig`; 0 weighs all timesteps alike.
        difference_loss: weight of the same loss on the differences of neighbouring frames.
    """
    videos = timesteps.shape[0]
    alphas = host.alphas_cumprod[timesteps.cpu()]
    predicted = host.predict(noise_later_frames(latents, noise, alphas), timesteps, text)
    target = noise.unflatten(0, (videos, -1))[:, 1:]
    guess = predicted.float().unflatten(0, (videos, -1))[:, 1:]
    weights = alphas, host.v_prediction, min_snr
    loss = noise_error(guess, target, *weights)
    if not difference_loss:
        return loss
    return loss + difference_loss * noise_error(guess.diff(dim=1), target.diff(dim=1), *weights)


def noise_error(
    guess: Tensor, target: Tensor, alphas: Tensor, v_prediction: bool = False, min_snr: float = 0.0
) -> Tensor:
    """How far predicted noise `b f c h w` is off, weighted as `predict_loss` tells.

    Args:
        alphas: cumulative, `b`.
        v_prediction: see `Host`.
    """
    if not min_snr and not v_prediction:
        return nn.functional.mse_loss(guess, target)
    errors = (guess - target).square().flatten(1).mean(1)
    if not min_snr:
        # At the same x the noise is off by sqrt(alpha) times what v is off by.
        return (errors / alphas.to(guess)).mean()
    # These weights are one and the same for noise and v: they stand for the error of x_0.
    snr = (alphas / (1 - alphas)).to(guess)
    return (errors * snr.clamp(max=min_snr) / snr).mean()


def noise_later_frames(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """`(b f) c h w` with noise on frames 2.. (paper eq. 2); `alphas`: cumulative, `b`."""
    videos = alphas.shape[0]
    first = latents.unflatten(0, (videos, -1))[:, 0]
    per_frame = alphas.to(latents).repeat_interleave(latents.shape[0] // videos)
    return with_first_frame(add_noise(latents, noise, per_frame[:, None, None, None]), first)


class Training:
    """One tuning run, step by step; `motion` holds what was learned so far.

    Hooks are on the UNet only while a step is computed. All chance comes from one CPU generator,
    so that seed and settings fix the run, and its state can be kept (`lamp.training.state`).

    Args:
        host: the image model, frozen, on the device of `motion`.
        motion: fp32 parameters, initialised; with a `rank` they become factors.
        group: other processes that train the same motion on their shares of each batch.

    Raises:
        LampError: the clips' windows have another length, or none would be left to learn from.
    """

    def __init__(
        self,
        host: Host,
        motion: Motion,
        clips: LatentClips,
        config: TrainConfig,
        group: ProcessGroup | None = None,
    ) -> None:
        clips.check(config.frames)
        self.host, self.motion, self.clips, self.config = host, motion, clips, config
        self.group: ProcessGroup = group or SingleProcess()
        self.device = next(motion.parameters()).device
        if config.rank:
            factorise(motion, config.rank, config.seed)
        self.optimizer = make_optimizer(motion, config)
        whole = config.query_decay == "whole"
        self._decay = QueryDecay(host.unet, motion, self.optimizer) if whole else None
        self.trained = list(motion.trained_parameters().values())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.average = Average(self.trained, config.ema)
        self._gradient_check = GradientCheck(_moving(motion, self.optimizer))
        self.draw = torch.Generator().manual_seed(config.seed)
        learned, held_out = split_clips(len(clips.posteriors), config.hold_out, config.seed)
        self.batches = Batches(clips, learned, self.draw)
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.updating = False
        self._validation = Validation(clips, held_out, config.seed)
        self._rewind = (self.draw.get_state(), list[int]())
        self._seconds: deque[float] = deque(maxlen=PACE)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return len(self.losses)

    @property
    def place(self) -> tuple[Tensor, list[int]]:
        """Generator state and clips left of the pass, before the first step that is not done."""
        return self._rewind

    def resume_at(
        self, random: Tensor, order: list[int], losses: list[float], validation: list[Any]
    ) -> None:
        """Go on from a kept place."""
        self.draw.set_state(random)
        self.batches.order = list(order)
        self.losses[:] = losses
        self.validation[:] = [(int(step), float(loss)) for step, loss in validation]
        self._remember_place()

    def advance(self) -> StepReport:
        """One optimiser step.

        Raises:
            LampError: the loss is no longer finite; the parameters are those before the step.
        """
        begun = time.perf_counter()
        rate = self.config.learning_rate * learning_rate_factor(self.step, self.config)
        set_rate(self.optimizer, rate)
        loss = self._gradients(rate)
        self.updating = True  # from here to the end of the step the parameters are no whole state
        clip_norm = self.config.clip_norm
        apply_gradients(self.optimizer, self.trained, clip_norm, self.scaler, self._decay)
        self.average.update()
        self.losses.append(loss)
        self._remember_place()
        self.updating = False
        self._seconds.append(time.perf_counter() - begun)
        seconds = sum(self._seconds) / len(self._seconds)
        return StepReport(self.step, self.config.steps, loss, rate, seconds)

    def run(self, on_step: Callable[[StepReport], object] = lambda report: None) -> None:
        """Take all steps that are left; an exception of `on_step` (a cancel) ends the run."""
        while self.step < self.config.steps:
            on_step(self.advance())

    def validate(self) -> float | None:
        """Mean loss on the held-out clips with the averaged parameters; None if none is held."""
        if not self._validation.cases:
            return None
        with torch.no_grad(), self.average.shown(), self._attached(1):
            losses = [self._loss(*case).item() for case in self._validation.cases]
        self.validation.append((self.step, sum(losses) / len(losses)))
        return self.validation[-1][1]

    def finish(self) -> None:
        """Put the averaged parameters, if there are any, in the place of the last ones."""
        self.average.store()

    def _remember_place(self) -> None:
        self._rewind = (self.draw.get_state(), list(self.batches.order))

    def _gradients(self, rate: float) -> float:
        """Gradients of the whole batch on all processes; returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        with self._attached(self.config.batch):
            for _ in range(self.config.accumulate):
                loss = self._loss(*self._share()) / self.config.accumulate
                self.scaler.scale(loss).backward()
                total += loss.detach()
        if self._gradient_check.waits and total.isfinite():
            self._gradient_check.check(self.scaler.get_scale())
        self.group.mean_([total, *(p.grad for p in self.trained if p.grad is not None)])
        return _finite(total, self.step, rate)

    def _share(self) -> tuple[Batch, Tensor, Tensor]:
        """This process's share of the next batch, with its noise and timesteps. All processes draw
        the whole batch, so that their number does not change what is learned from."""
        count, own = self.config.batch * self.group.count, self.config.batch
        batch = self.batches.next(count)
        noise = torch.randn(batch.latents.shape, generator=self.draw)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (count,), generator=self.draw)
        if count == own:
            return batch, noise, timesteps
        rank, frames = self.group.rank, self.config.frames
        rows = slice(rank * own * frames, (rank + 1) * own * frames)
        videos = slice(rank * own, (rank + 1) * own)
        return Batch(batch.latents[rows], batch.text[videos]), noise[rows], timesteps[videos]

    def _loss(self, batch: Batch, noise: Tensor, timesteps: Tensor) -> Tensor:
        latents, text, noise, timesteps = (
            tensor.to(self.device) for tensor in (batch.latents, batch.text, noise, timesteps)
        )
        with _autocast(self.device, self.config.precision):
            return predict_loss(
                self.host,
                latents,
                noise,
                timesteps,
                text,
                self.config.min_snr,
                self.config.difference_loss,
            )

    @contextlib.contextmanager
    def _attached(self, videos: int) -> Iterator[None]:
        layout = FrameLayout(self.config.frames, videos)
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                self.motion.attached(self.host.unet, layout, groupnorm=self.config.groupnorm)
            )
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(checkpointed(self.host.unet, self.motion))
            yield


def train(
    host: Host,
    motion: Motion,
    clips: LatentClips,
    config: TrainConfig,
    on_step: Callable[[StepReport], object] = lambda report: None,
) -> list[float]:
    """Train `motion` in place from the first step to the last and return the losses.

    An exception of `on_step` (a cancel) ends the run; `motion` then holds what it has learned so
    far. For arguments and errors see `Training`.
    """
    training = Training(host, motion, clips, config)
    try:
        training.run(on_step)
    finally:
        training.finish()
    return training.losses


def _moving(motion: Motion, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """What is learned, by name, without what an own learning rate of 0 holds where it is."""
    moving = {id(p) for g in optimizer.param_groups if g["factor"] for p in g["params"]}
    return {n: p for n, p in motion.trained_parameters().items() if id(p) in moving}


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
