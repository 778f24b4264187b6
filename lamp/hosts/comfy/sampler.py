"""The LAMP sampler in ComfyUI: any of its samplers, with AdaIN between the steps.

ComfyUI samples in the scale x = s x_0 + sigma n, where s is 1, or 1 - sigma for flow models.
AdaIN (supplement alg. 1) is defined on the DDPM sample x / sqrt(s^2 + sigma^2), in which the clean
frame 1 is unscaled.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ...errors import LampError
from ...method.adain import AdaINSchedule
from ...method.schedule import TRAIN_TIMESTEPS, ddim_timesteps, nearest_timestep
from .binding import bound_motion
from .canvas import warn_below_running_node
from .latent import check_one_video, mask_of_step
from .levels import ends_clean, mark_start, signal_and_noise, starts_official
from .noise import given_noise, seed_others, shared_noise
from .preview import show_middle_frame
from .run import Run, run_of
from .steps import step_starts

OFFICIAL_SCHEDULER = "ddim (official)"


def scheduler_names() -> list[str]:
    """The official DDIM timesteps, then all schedulers of ComfyUI."""
    import comfy.samplers

    return [OFFICIAL_SCHEDULER, *comfy.samplers.SCHEDULER_NAMES]


def make_sigmas(
    patcher: Any, scheduler: str, steps: int, denoise: float = 1.0, sampler: str = ""
) -> Tensor:
    """Descending noise levels of a run; none at denoise 0.

    `ddim (official)` visits the timesteps 981, 961, ..., 1 (for 50 steps) and ends at
    alphas_cumprod[0], which is not quite zero noise, as the official scheduler. ComfyUI drops the
    second to last level for some samplers; pass the sampler's name to do the same.

    Raises:
        LampError: the scheduler is unknown, or the official one cannot have that many steps or
            does not fit this MODEL.
    """
    import comfy.samplers

    _check_name("scheduler", scheduler, scheduler_names())
    if denoise <= 0.0:
        return torch.zeros(0)
    sampling = patcher.get_model_object("model_sampling")
    total = steps if denoise >= 1.0 else int(steps / denoise)
    if scheduler == OFFICIAL_SCHEDULER:
        if total > TRAIN_TIMESTEPS:
            raise LampError(
                f"{steps} steps at denoise {denoise:g} need {total} noise levels, but the official "
                f"schedule has {TRAIN_TIMESTEPS}: use fewer steps."
            )
        sigmas = mark_start(sigmas_at(patcher, [*ddim_timesteps(total), 0]))
    elif sampler in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total + 1).cpu()
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    else:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total).cpu()
    # At full denoise some schedulers return more levels than asked for: use all of them.
    return sigmas if denoise >= 1.0 else sigmas[-(steps + 1) :]


def sigmas_at(patcher: Any, timesteps: list[int]) -> Tensor:
    """The noise levels of timesteps 0 .. 999.

    Raises:
        LampError: the MODEL has another number of timesteps, such as the 50 of LCM.
    """
    levels = patcher.get_model_object("model_sampling").sigmas
    if len(levels) != TRAIN_TIMESTEPS:
        raise LampError(
            f"'{OFFICIAL_SCHEDULER}' needs {TRAIN_TIMESTEPS} noise levels, but this MODEL has "
            f"{len(levels)}, as set by ModelSamplingDiscrete for LCM or ModelSamplingFlux: choose "
            "another scheduler, such as sgm_uniform (BasicScheduler instead of LAMP Scheduler)."
        )
    return levels[timesteps].float().cpu()


def sample_video(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    schedule: AdaINSchedule,
    denoise: float = 1.0,
    noise: Tensor | None = None,
    noise_level: float | None = None,
) -> dict[str, Any]:
    """Generate frames 2.. of a LATENT from its first frame (supplement alg. 1), with previews.

    Args:
        model: a MODEL with a motion.
        noise: starting noise, used unchanged; by default drawn from the seed and shared with the
            motion's alpha.
        noise_level: the level (sigma) to which that noise was inverted, if it was.

    Raises:
        LampError: the model has no motion, or latent, noise and sampler do not match.
    """
    import comfy.sample
    import comfy.utils

    alpha = bound_motion(model).alpha
    mask = latent.get("noise_mask")
    frames = latent["samples"]
    check_one_video(frames, latent.get("batch_index"))
    if denoise >= 1.0 and mask is None:
        frames = _only_first(frames)
    if noise is None:
        noise = shared_noise(frames, seed, alpha)
    else:
        noise = given_noise(noise, frames, noise_level)
    sigmas = make_sigmas(model, scheduler, steps, denoise, sampler)
    seed_others(seed)
    done = (steps if denoise >= 1.0 else int(steps / denoise)) - steps if denoise > 0.0 else 0
    samples = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        make_sampler(sampler, schedule, done),
        sigmas,
        positive,
        negative,
        frames,
        noise_mask=mask,
        callback=show_middle_frame(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": samples}


def _only_first(frames: Tensor) -> Tensor:
    """At denoise 1 ComfyUI adds the latent to the noise, so frames 2.. would leak into it."""
    if not frames[1:].any():
        return frames
    warn_below_running_node(
        "At denoise 1 the video starts from frame 1 alone: the other frames of latent are ignored."
    )
    return torch.cat([frames[:1], torch.zeros_like(frames[1:])])


def make_sampler(name: str, schedule: AdaINSchedule, done: int | None = None) -> Any:
    """A SAMPLER of ComfyUI with an AdaIN schedule.

    Args:
        done: number of steps of the whole schedule before the sampler's first one, if known.

    Raises:
        LampError: the sampler is unknown.
    """
    import comfy.samplers

    _check_name("sampler", name, comfy.samplers.SAMPLER_NAMES)
    return with_adain(comfy.samplers.sampler_object(name), schedule, name, done)


def _check_name(kind: str, name: str, known: list[str]) -> None:
    # Not every version of ComfyUI checks menu values that come over its API.
    if name not in known:
        raise LampError(f"Unknown {kind} '{name[:50]}'. Choose one of: {', '.join(known)}.")


def with_adain(
    sampler: Any, schedule: AdaINSchedule, name: str = "sampler", done: int | None = None
) -> Any:
    """Wrap a SAMPLER (KSAMPLER) so that AdaIN is applied to its state after each step.

    The wrapper raises LampError before its first step if AdaIN cannot follow the sampler.
    """
    import comfy.samplers

    inner = sampler.sampler_function

    def sample(
        model: Any, x: Tensor, sigmas: Tensor, callback: Any = None, **kwargs: Any
    ) -> Tensor:
        run = run_of(kwargs["extra_args"]["model_options"]["transformer_options"])
        if run is None or run.first is None:
            raise LampError(
                "The LAMP sampler needs a MODEL with a motion: connect the MODEL output of Load "
                "LAMP Motion or of LAMP Trainer."
            )
        # ComfyUI's uni_pc writes into its noise levels.
        position = _SchedulePosition(sigmas.clone(), run.sampling, schedule, done)
        starts = [] if schedule.mode == "off" else step_starts(name, sampler, model, sigmas)
        watched = _BetweenSteps(model, run, position, schedule, starts, kwargs["extra_args"])
        last = _LastOfAll(callback, len(sigmas) - 1) if position.ends else None
        out = inner(watched, watched.start(x), sigmas, callback=last or callback, **kwargs)
        out = watched.finish(out)
        if last is not None:
            last.tell(out)
        return out

    return comfy.samplers.KSAMPLER(sample, sampler.extra_options, sampler.inpaint_options)


class _SchedulePosition:
    """The position of a run's steps in the AdaIN schedule, from their noise levels.

    A run may be a part of a schedule (Split Sigmas, KSampler (Advanced), denoise below 1) and has
    to give the same result there as the whole schedule.

    Raises:
        LampError: the mode counts steps, and the number of earlier steps is unknown.
    """

    def __init__(
        self, sigmas: Tensor, sampling: Any, schedule: AdaINSchedule, done: int | None
    ) -> None:
        self.sigmas, self.steps = sigmas, len(sigmas) - 1
        self.starts_official = starts_official(sigmas, sampling)
        highest = float(sampling.sigma_max)
        self.scaled_by_host = float(sigmas[0]) >= highest * (1 - 1e-5)
        self.ends = ends_clean(sigmas, sampling)
        self._schedule = schedule
        self._signal, self._noise = signal_and_noise(sampling, sigmas)
        if done is None and (self.starts_official or self.scaled_by_host):
            done = 0
        self._done = done
        if schedule.mode == "official" and done is None and self.steps:
            raise LampError(
                "The AdaIN mode 'official' counts steps from the start of the schedule, but "
                f"sampling begins at level {float(sigmas[0]):.2f}, after an unknown number of "
                "steps: choose paper or custom, which use noise levels."
            )

    def of(self, step: int) -> tuple[int, int]:
        """The arguments (step, steps) of `AdaINSchedule.after_step` for a step of this run."""
        done = self._done or 0
        timestep = nearest_timestep(self._noise[step] / self._signal[step])
        return self._schedule.position(done + step, done + self.steps, timestep)

    def scale(self, step: int) -> Tensor:
        """What the state after a step is divided by to become the DDPM sample."""
        return (self._signal[step + 1] ** 2 + self._noise[step + 1] ** 2).sqrt()

    def as_state(self, video: Tensor) -> Tensor:
        """A finished video as the state at the end, which ComfyUI divides by its signal."""
        return video * self._signal[-1]


class _LastOfAll:
    """Delays the callback's last call and passes it the finished video, after AdaIN."""

    def __init__(self, callback: Any, steps: int) -> None:
        self._callback, self._steps = callback, steps
        self._kept: dict[str, Any] | None = None

    def __call__(self, told: dict[str, Any]) -> None:
        if self._callback is None:
            return
        if told["i"] == self._steps - 1:
            self._kept = told
        else:
            self._callback(told)

    def tell(self, video: Tensor) -> None:
        """Report the last step."""
        if self._kept is not None:
            self._callback({**self._kept, "denoised": video})


class _BetweenSteps:
    """Replaces the model that a sampler calls.

    A sampler passes its state to the model at the beginning of each step, that is, after the
    previous step. AdaIN is applied to the state there in place, and the sampler continues with it.
    """

    def __init__(
        self,
        model: Any,
        run: Run,
        position: _SchedulePosition,
        schedule: AdaINSchedule,
        starts: list[int],
        extra: dict[str, Any],
    ) -> None:
        self._model, self._position, self._schedule = model, position, schedule
        self._run, self._guider = run, run.guider
        # Both are set once the run has begun.
        self._first, self._latent = cast(Tensor, run.first), cast(Tensor, run.latent)
        self._step_of = {call: step for step, call in enumerate(starts) if step}
        self._calls = 0
        self._mask, self._options = extra.get("denoise_mask"), extra["model_options"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        step = self._step_of.get(self._calls)
        self._calls += 1
        if step is not None:
            x.copy_(self._adapt(x, step - 1))
        self._denoised: Tensor = self._model(x, sigma, **kwargs)
        return self._denoised

    def start(self, x: Tensor) -> Tensor:
        """Rescale the initial latent of the official schedule. It uses plain noise as x_T, while
        ComfyUI scales the noise down below the highest level: by 0.3 % at timestep 981 of 50
        steps, by half at 501 of 2."""
        if not self._position.starts_official or self._position.scaled_by_host:
            return x
        latent, scale = self._latent, (1 + self._position.sigmas[0] ** -2) ** 0.5
        if self._run.first_noise is not None:
            self._run.first_noise = self._run.first_noise * scale.to(self._run.first_noise)
        return latent + (x - latent) * scale

    def finish(self, x: Tensor) -> Tensor:
        """AdaIN after the last step and, at the end of a schedule, after the loop."""
        position = self._position
        if not position.steps:
            return x
        x = self._adapt(x, position.steps - 1)
        if not position.ends:
            return x  # another sampler continues
        last = position.steps - 1
        x = x / position.scale(last)
        if position.sigmas[-1] > 0:  # what a mask protects has no noise left
            x = self._within_mask(self._denoised, x, last)
        if self._schedule.mode != "off":
            video = torch.cat([self._first.to(x), x[1:]])
            x = self._within_mask(x, self._schedule.after_loop(video, len(x)), last)
        return position.as_state(x)

    def _adapt(self, x: Tensor, step: int) -> Tensor:
        if self._schedule.mode == "off":
            return x
        scale = self._position.scale(step)
        video = torch.cat([self._first.to(x), x[1:] / scale])
        adapted = self._schedule.after_step(video, *self._position.of(step), len(x))
        adapted = torch.cat([x[:1], adapted[1:] * scale])
        return self._within_mask(x, adapted, step)

    def _within_mask(self, kept: Tensor, x: Tensor, step: int) -> Tensor:
        """`x`, or `kept` where the latent's mask protects it."""
        given = (self._mask, self._options, self._guider, self._position.sigmas, step)
        mask = mask_of_step(*given)
        return x if mask is None else torch.lerp(kept, x, mask.to(x))
