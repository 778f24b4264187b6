"""The LAMP sampler inside ComfyUI: any of the host's samplers, with AdaIN between its steps.

The host samples in its own scale, x = x_0 + sigma n; AdaIN (supplement alg. 1) is defined on the
DDPM sample x / sqrt(1 + sigma^2), where the clean frame 1 stands as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..adain import AdaINSchedule
from ..errors import LampError
from ..plain import log
from ..schedule import TRAIN_TIMESTEPS, ddim_timesteps
from .comfy import bound_motion, clean_first_frame
from .comfy_noise import check_level, given_noise, shared_noise

OFFICIAL_SCHEDULER = "ddim (official)"
# These choose their own noise levels, so there is no "after step i" at which AdaIN could act.
_OWN_LEVELS = ("dpm_fast", "dpm_adaptive", "uni_pc", "uni_pc_bh2")


def scheduler_names() -> list[str]:
    """The official DDIM timesteps first, then all schedulers of the host."""
    import comfy.samplers

    return [OFFICIAL_SCHEDULER, *comfy.samplers.SCHEDULER_NAMES]


def make_sigmas(
    patcher: Any, scheduler: str, steps: int, denoise: float = 1.0, sampler: str = ""
) -> Tensor:
    """Noise levels of a run, descending; none at denoise 0.

    `ddim (official)` visits the timesteps 981, 961, ..., 1 (for 50 steps) and ends at
    alphas_cumprod[0], which is not quite zero noise, as the official scheduler does. The host
    leaves out the last level but one for some samplers; tell their name for the same levels.

    Raises:
        LampError: the scheduler is unknown, or the official one does not have that many steps or
            is not for this MODEL.
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
                f"{steps} steps at denoise {denoise:g} would need {total} noise levels, the "
                f"official schedule has {TRAIN_TIMESTEPS}: use fewer steps."
            )
        sigmas = sigmas_at(patcher, [*ddim_timesteps(total), 0])
    elif sampler in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total + 1).cpu()
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    else:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total).cpu()
    # At full denoise some schedulers of the host give a level more than steps: all are taken.
    return sigmas if denoise >= 1.0 else sigmas[-(steps + 1) :]


def sigmas_at(patcher: Any, timesteps: list[int]) -> Tensor:
    """The noise levels of timesteps 0 .. 999.

    Raises:
        LampError: the MODEL has other timesteps, such as the 50 of LCM's.
    """
    levels = patcher.get_model_object("model_sampling").sigmas
    if len(levels) != TRAIN_TIMESTEPS:
        raise LampError(
            f"'{OFFICIAL_SCHEDULER}' takes its steps among {TRAIN_TIMESTEPS} noise levels, and "
            f"this MODEL has {len(levels)}, as ModelSamplingDiscrete gives it for LCM: choose "
            "another scheduler, such as sgm_uniform (BasicScheduler in place of LAMP Scheduler)."
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
    """Predict frames 2.. of a LATENT from its first frame (supplement alg. 1), with previews.

    Args:
        model: a MODEL with a motion.
        noise: starting noise, used as it is; without it the seed's, shared as the motion says.
        noise_level: the level (sigma) at which sampling has to begin with that noise, if any.

    Raises:
        LampError: the model has no motion, or latent, noise and sampler do not fit.
    """
    import comfy.sample
    import comfy.utils
    import latent_preview

    alpha = bound_motion(model).alpha
    mask = latent.get("noise_mask")
    frames = latent["samples"]
    if denoise >= 1.0 and mask is None:
        frames = _only_first(frames)
    noise = shared_noise(frames, seed, alpha) if noise is None else given_noise(noise, frames)
    sigmas = make_sigmas(model, scheduler, steps, denoise, sampler)
    if noise_level is not None:
        check_level(noise_level, sigmas)
    samples = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        make_sampler(sampler, schedule),
        sigmas,
        positive,
        negative,
        frames,
        noise_mask=mask,
        callback=latent_preview.prepare_callback(model, max(len(sigmas) - 1, 0)),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return {**latent, "samples": samples}


def _only_first(frames: Tensor) -> Tensor:
    """At denoise 1 the host adds the latent to the noise: whatever frames 2.. hold would leak."""
    if not frames[1:].any():
        return frames
    log.info("LAMP: at denoise 1 the video starts from frame 1 alone; other frames are ignored.")
    return torch.cat([frames[:1], torch.zeros_like(frames[1:])])


def make_sampler(name: str, schedule: AdaINSchedule) -> Any:
    """A SAMPLER of the host under an AdaIN schedule.

    Raises:
        LampError: the sampler is unknown, or AdaIN cannot follow it.
    """
    import comfy.samplers

    _check_name("sampler", name, comfy.samplers.SAMPLER_NAMES)
    if name in _OWN_LEVELS and schedule.mode != "off":
        raise LampError(
            f"The sampler '{name}' chooses its own noise levels, so AdaIN has no steps to follow: "
            "choose another sampler (ddim or euler is the paper's) or set AdaIN to off."
        )
    return with_adain(comfy.samplers.sampler_object(name), schedule)


def _check_name(kind: str, name: str, known: list[str]) -> None:
    # Not every version of the host checks the menus of a graph that comes over its API.
    if name not in known:
        raise LampError(f"Unknown {kind} '{name[:50]}'. Choose one of: {', '.join(known)}.")


def with_adain(sampler: Any, schedule: AdaINSchedule) -> Any:
    """Wrap a SAMPLER (KSAMPLER) so that AdaIN acts on its state after each step."""
    import comfy.samplers

    inner = sampler.sampler_function

    def sample(model: Any, x: Tensor, sigmas: Tensor, **kwargs: Any) -> Tensor:
        extra = kwargs["extra_args"]
        watched = _BetweenSteps(model, sigmas, schedule, extra["model_options"])
        out = watched.finish(inner(watched, watched.start(x), sigmas, **kwargs))
        mask = extra.get("denoise_mask")
        # What the mask protects stays as it was given, AdaIN or not.
        return out if mask is None else out * mask + model.latent_image * (1.0 - mask)

    return comfy.samplers.KSAMPLER(sample, sampler.extra_options, sampler.inpaint_options)


class _BetweenSteps:
    """Stands in for the model that a sampler calls.

    A sampler hands its state to the model at each noise level of the schedule. That is the moment
    after the step before, so the state is adapted there, in place: the sampler goes on from it.
    """

    def __init__(
        self, model: Any, sigmas: Tensor, schedule: AdaINSchedule, options: dict[str, Any]
    ) -> None:
        first = clean_first_frame(options)
        if first is None:
            raise LampError(
                "The LAMP sampler needs a MODEL with a motion: connect the MODEL output of Load "
                "LAMP Motion or of LAMP Trainer."
            )
        self._model, self._schedule, self._first = model, schedule, first
        self._sigmas, self._steps = sigmas, len(sigmas) - 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        done = torch.nonzero(self._sigmas[1:] == sigma.flatten()[0])
        if len(done):
            x.copy_(self._adapt(x, sigma.flatten()[0], int(done[0])))
        return self._model(x, sigma, **kwargs)

    def start(self, x: Tensor) -> Tensor:
        """The official sampler takes plain noise as x_T at its first timestep, where the host,
        knowing that this is not the very last level, would scale it down: by 0.3 % at 981 of 50
        steps, by half at 501 of 2."""
        sigma = self._sigmas[0]
        if self._sigmas[-1] == 0 or not self._is_whole_schedule():
            return x
        latent = self._model.latent_image
        return latent + (x - latent) * (1 + sigma**-2) ** 0.5

    def _is_whole_schedule(self) -> bool:
        """Whether the official schedule runs from its beginning (denoise 1)."""
        levels = self._model_sampling().sigmas
        if len(levels) != TRAIN_TIMESTEPS:
            return False
        return bool(self._sigmas[0] > 0.9999 * levels[ddim_timesteps(self._steps)[0]])

    def finish(self, x: Tensor) -> Tensor:
        """AdaIN after the last step and after the loop, in the scale of the clean latent."""
        sigma = self._sigmas[-1]
        x = self._adapt(x, sigma, self._steps - 1)
        if sigma > 1.0001 * self._model_sampling().sigmas[0]:
            return x  # a part of a schedule: another sampler goes on from here
        x = x / (1 + sigma**2) ** 0.5
        video = torch.cat([self._first.to(x), x[1:]])
        return self._schedule.after_loop(video, x.shape[0])

    def _adapt(self, x: Tensor, sigma: Tensor, step: int) -> Tensor:
        scale = (1 + sigma**2) ** 0.5
        video = torch.cat([self._first.to(x), x[1:] / scale])
        adapted = self._schedule.after_step(video, step, self._steps, x.shape[0])
        return torch.cat([x[:1], adapted[1:] * scale])

    def _model_sampling(self) -> Any:
        return self._model.inner_model.inner_model.model_sampling
