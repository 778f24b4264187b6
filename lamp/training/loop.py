"""Few-shot training (paper sec. 3.3 and 4.1): the motion learns, the image model is frozen.

`Training.advance` is one step. Its loss is paper eq. 4: noise on frames 2..l, frame 1 clean. The
first-frame attention of eq. 5 is in `lamp.method.attention`, attached with the motion.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LampError
from ..method.host import Host
from ..method.layout import FrameLayout
from ..method.motion import Motion
from ..method.overrides import Hooks
from ..method.sampling import with_first_frame
from ..method.schedule import TRAIN_TIMESTEPS, add_noise, shift_timesteps
from ..motion_file.file import MotionFile
from ..motion_file.provenance import origin_of
from .arena import Arena
from .batches import Batch, Batches
from .early_updates import early_updates
from .gradient_check import GradientCheck
from .gradient_checkpointing import checkpointed
from .last_norm import keep_last_norm_exact
from .latents import LatentClips
from .low_rank import factorise
from .optimizers import (
    Average,
    ProcessGroup,
    QueryDecay,
    SingleProcess,
    apply_gradients,
    base_rate,
    decays_base,
    make_optimizer,
    set_rate,
)
from .recipe import PRECISIONS, TrainConfig, learning_rate_factor
from .validation import Validation, split_clips
from .warm_start import start_from

PACE = 20
"""Number of last steps whose mean time is a run's speed. The first step is slower."""


@dataclass(frozen=True)
class StepReport:
    """The result of a step.

    ``seconds_per_step``: mean of the last `PACE` steps; ``overhead_seconds``: expected time for the
    remaining samples, validations and states.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds_per_step: float
    overhead_seconds: float = 0.0

    @property
    def speed(self) -> str:
        """`1.52 steps/s`, or `12.0 s/step` for slow steps."""
        rate = 1 / max(self.seconds_per_step, 1e-9)
        return f"{rate:.2f} steps/s" if rate >= 0.1 else f"{self.seconds_per_step:.1f} s/step"

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
    """The training loss (paper eq. 4): frame 1 stays clean, the loss covers frames 2..l.

    The motion must be attached to the host's UNet. For a model that predicts v, this is the error
    of v, the loss it was trained with.

    Args:
        latents, noise: `(b f) c h w`.
        timesteps: `b`, one for all frames of a video.
        text: see `Host.predict`.
        min_snr, difference_loss: see `TrainConfig`.
    """
    videos = timesteps.shape[0]
    alphas = host.alphas_cumprod[timesteps.cpu()]
    noisy = noise_later_frames(latents, noise, alphas)
    predicted = host.predict(noisy, timesteps, text).float()
    predicted, target = (x.unflatten(0, (videos, -1))[:, 1:] for x in (predicted, noise))
    weights = alphas, host.v_prediction, min_snr
    loss = noise_error(predicted, target, *weights)
    if not difference_loss:
        return loss
    return loss + difference_loss * noise_error(predicted.diff(dim=1), target.diff(dim=1), *weights)


def noise_later_frames(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """`(b f) c h w` with noise on frames 2..l (paper eq. 2); `alphas`: cumulative, `b`."""
    videos = alphas.shape[0]
    first = latents.unflatten(0, (videos, -1))[:, 0]
    per_frame = alphas.to(latents).repeat_interleave(latents.shape[0] // videos)
    return with_first_frame(add_noise(latents, noise, per_frame[:, None, None, None]), first)


def noise_error(
    predicted: Tensor,
    target: Tensor,
    alphas: Tensor,
    v_prediction: bool = False,
    min_snr: float = 0.0,
) -> Tensor:
    """Mean squared error of predicted noise `b f c h w`, weighted as in `predict_loss`.

    Args:
        alphas: cumulative, `b`.
        v_prediction: see `Host`.
    """
    if not min_snr and not v_prediction:
        return nn.functional.mse_loss(predicted, target)
    errors = (predicted - target).square().flatten(1).mean(1)
    if not min_snr:
        # At the same x, the error of the noise is sqrt(alpha) times the error of v.
        return (errors / alphas.to(predicted)).mean()
    # The same weights for noise and v: they make it a capped error of x_0.
    snr = (alphas / (1 - alphas)).to(predicted)
    return (errors * snr.clamp(max=min_snr) / snr).mean()


class Training:
    """A training run, step by step; `motion` holds what has been learned so far.

    Hooks are on the UNet only during a step. All random numbers come from one CPU generator, so
    that seed and settings determine the run, and its state can be saved (`lamp.training.state`).

    Args:
        host: the image model, frozen, on the device of `motion`; it computes in the precision of
            `config` from now on.
        motion: fp32 parameters, initialised; with a `rank` they become factors.
        group: other processes that train the same motion on their shares of each batch.
        start: the motion file to start from, see `lamp.training.warm_start`.

    Raises:
        LampError: the clips have windows of another length, all of them are held out, `start`
            does not fit, or the image model computes in less than `precision`.
    """

    def __init__(
        self,
        host: Host,
        motion: Motion,
        clips: LatentClips,
        config: TrainConfig,
        group: ProcessGroup | None = None,
        start: MotionFile | None = None,
    ) -> None:
        clips.check(config.frames)
        self.host, self.motion, self.clips, self.config = host, motion, clips, config
        self.asked = config
        """The settings as given: `config` also has the number of steps that fits `minutes`."""
        self.unplanned = bool(config.minutes)
        """Whether `minutes` is given, and its number of steps is not known yet."""
        self.group: ProcessGroup = group or SingleProcess()
        self.device = next(motion.parameters()).device
        _set_precision(host, config.precision)
        if start is not None:
            start_from(motion, start, config)
        elif config.rank:
            factorise(motion, config.rank, config.seed)
        self.origin = {} if start is None else origin_of(start)
        """Header entries of the motion file about the motion it started from."""
        self.optimizer = make_optimizer(motion, config)
        whole = config.query_decay == "whole" and decays_base(config)
        self._decay = QueryDecay(host.unet, motion, self.optimizer) if whole else None
        self.trained = list(motion.trained_parameters().values())
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.average = Average(self.trained, config.ema, self.optimizer)
        self._arena = Arena(self.device)
        self.state_device = torch.device("cpu") if config.update == "offload" else self.device
        """Where the optimizer's state is between updates."""
        self._early = early_updates(self.optimizer, self.trained, config, self.group.count)
        self._gradient_check = GradientCheck(_moving(motion, self.optimizer))
        self.generator = torch.Generator().manual_seed(config.seed)
        train_clips, held_out = split_clips(len(clips.posteriors), config.hold_out, config.seed)
        self.batches = Batches(clips, train_clips, self.generator)
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.sample_scores: list[tuple[int, dict[str, float]]] = []
        """By step, see `lamp.training.stopping`."""
        self.learned = False
        """Whether to stop before the last step, as the motion is learned."""
        self.updating = False
        """Whether an update is under way, so that the parameters belong to no step."""
        self._validation = Validation(clips, held_out, config.seed)
        self._position = (self.generator.get_state(), list[int]())
        self._seconds: deque[float] = deque(maxlen=PACE)
        self._timed = 0

    @property
    def step(self) -> int:
        """Completed steps."""
        return len(self.losses)

    @property
    def seconds_per_step(self) -> float:
        """Mean time of the last steps, without the slower first one."""
        return sum(self._seconds) / len(self._seconds)

    def plan(self, config: TrainConfig) -> None:
        """Use settings with the number of steps that fits `minutes`."""
        self.config, self.unplanned = config, False

    @property
    def position(self) -> tuple[Tensor, list[int]]:
        """Generator state and remaining clips of the epoch, after the last completed step."""
        return self._position

    def resume_at(
        self, random: Tensor, order: list[int], losses: list[float], validation: list[Any]
    ) -> None:
        """Continue from a saved `position`."""
        self.generator.set_state(random)
        self.batches.order = list(order)
        self.losses[:] = losses
        self.validation[:] = [(int(step), float(loss)) for step, loss in validation]
        self._save_position()

    def advance(self) -> StepReport:
        """One optimizer step.

        Raises:
            LampError: the loss is not finite, or a parameter gets no gradient. The parameters are
                those before the step, unless `updating` says otherwise.
        """
        begun = time.perf_counter()
        config = self.config
        rate = base_rate(config) * learning_rate_factor(self.step, config)
        set_rate(self.optimizer, rate)
        with self._arena.measured():
            mean_loss = self._gradients(rate)
        self.updating = True
        if self._early is None:
            apply_gradients(
                self.optimizer, self.trained, config.clip_norm, self.scaler, self._decay
            )
        elif self._decay is not None:
            self._decay.apply()
        self._arena.arrange(self.optimizer, self.state_device)
        self.average.update()
        self.losses.append(mean_loss)
        self._save_position()
        self.updating = False
        self._timed += 1
        if self._timed == 2:
            self._seconds.clear()
        self._seconds.append(time.perf_counter() - begun)
        return StepReport(self.step, config.steps, mean_loss, rate, self.seconds_per_step)

    def run(self, on_step: Callable[[StepReport], object] = lambda report: None) -> None:
        """Take all remaining steps. An exception of `on_step`, such as a cancel, ends the run.

        With `minutes`, `on_step` has to call `plan` after one of the first steps.
        """
        while not self.learned and (self.unplanned or self.step < self.config.steps):
            on_step(self.advance())

    def validate(self) -> float | None:
        """Mean loss on the held-out clips with the averaged parameters; None without such clips."""
        if not self._validation.cases:
            return None
        with torch.no_grad(), self.average.shown(), self._attached(1):
            losses = [self._loss(*case).item() for case in self._validation.cases]
        self.validation.append((self.step, sum(losses) / len(losses)))
        return self.validation[-1][1]

    def finish(self) -> None:
        """Replace the parameters by their average, if there is one."""
        self.average.store()

    def _save_position(self) -> None:
        self._position = (self.generator.get_state(), list(self.batches.order))

    def _gradients(self, rate: float) -> float:
        """Compute the gradients over accumulation and all processes; returns the mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        with self._attached(self.config.batch):
            for _ in range(self.config.accumulate):
                loss = self._loss(*self._next_batch()) / self.config.accumulate
                if self._early is None:
                    self.scaler.scale(loss).backward()
                else:
                    _finite(loss.detach(), self.step, rate)
                    self.updating = True
                    self._early.backward(loss, self._gradient_check.note, self._arena.waits)
                total += loss.detach()
        if self._gradient_check.waits and total.isfinite():
            self._gradient_check.check(self.scaler.get_scale())
        self.group.mean_([total, *(p.grad for p in self.trained if p.grad is not None)])
        return _finite(total, self.step, rate)

    def _next_batch(self) -> tuple[Batch, Tensor, Tensor]:
        """This process's share of the next batch, noise and timesteps. Every process draws the
        whole batch, so that the number of processes does not change the data."""
        own, rank = self.config.batch, self.group.rank
        videos, frames = own * self.group.count, self.config.frames
        batch = self.batches.next(videos)
        noise = torch.randn(batch.latents.shape, generator=self.generator)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (videos,), generator=self.generator)
        timesteps = shift_timesteps(timesteps, self.config.timestep_shift)
        share = slice(rank * own, (rank + 1) * own)
        rows = slice(rank * own * frames, (rank + 1) * own * frames)
        return Batch(batch.latents[rows], batch.text[share]), noise[rows], timesteps[share]

    def _loss(self, batch: Batch, noise: Tensor, timesteps: Tensor) -> Tensor:
        latents, text, noise, timesteps = (
            tensor.to(self.device) for tensor in (batch.latents, batch.text, noise, timesteps)
        )
        weights = self.config.min_snr, self.config.difference_loss
        return predict_loss(self.host, latents, noise, timesteps, text, *weights)

    @contextlib.contextmanager
    def _attached(self, videos: int) -> Iterator[None]:
        layout = FrameLayout(self.config.frames, videos)
        with Hooks() as stack:
            stack.enter_context(
                self.motion.attached(self.host.unet, layout, groupnorm=self.config.groupnorm)
            )
            keep_last_norm_exact(self.host.unet, self.motion.sites, stack)
            if self.config.gradient_checkpointing and torch.is_grad_enabled():
                early = self._early is not None
                stack.enter_context(checkpointed(self.host.unet, self.motion, early))
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
    if config.minutes:
        raise LampError(
            f"minutes is {config.minutes:g}: train() takes a number of steps, set minutes to 0."
        )
    training = Training(host, motion, clips, config)
    try:
        training.run(on_step)
    finally:
        training.finish()
    return training.losses


def _set_precision(host: Host, precision: str) -> None:
    half = PRECISIONS[precision]
    if half is not None:
        host.compute_in(half)
    elif host.dtype.itemsize < 4:
        raise LampError(
            f"precision is {precision}, but the image model computes in {host.dtype}: choose bf16 "
            "or fp16, or load the model in fp32."
        )


def _moving(motion: Motion, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Trained parameters by name, without those whose learning rate factor is 0."""
    moving = {id(p) for g in optimizer.param_groups if g["factor"] for p in g["params"]}
    return {n: p for n, p in motion.trained_parameters().items() if id(p) in moving}


def _finite(loss: Tensor, step: int, rate: float) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise LampError(
            f"The loss became {value} in step {step + 1} at learning rate {rate:g}. Lower the "
            "learning rate, or choose precision fp32 or bf16."
        )
    return value
