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
from ..schedule import TRAIN_TIMESTEPS, ddim_timesteps
from .comfy import clean_first_frame

OFFICIAL_SCHEDULER = "ddim (official)"
# These choose their own noise levels, so there is no "after step i" at which AdaIN could act.
_OWN_LEVELS = ("dpm_fast", "dpm_adaptive", "uni_pc", "uni_pc_bh2")


def scheduler_names() -> list[str]:
    """The official DDIM timesteps first, then all schedulers of the host."""
    import comfy.samplers

    return [OFFICIAL_SCHEDULER, *comfy.samplers.SCHEDULER_NAMES]


def make_sigmas(patcher: Any, scheduler: str, steps: int, denoise: float = 1.0) -> Tensor:
    """Noise levels of a run, descending.

    `ddim (official)` visits the timesteps 981, 961, ..., 1 (for 50 steps) and ends at
    alphas_cumprod[0], which is not quite zero noise, as the official scheduler does.
    """
    import comfy.samplers

    sampling = patcher.get_model_object("model_sampling")
    total = steps if denoise >= 1.0 else int(steps / denoise)
    if scheduler == OFFICIAL_SCHEDULER:
        visited = [*ddim_timesteps(min(total, TRAIN_TIMESTEPS)), 0]
        sigmas = sampling.sigmas[visited].float().cpu()
    else:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total).cpu()
    return sigmas[-(steps + 1) :]


def make_sampler(name: str, schedule: AdaINSchedule) -> Any:
    """A SAMPLER of the host under an AdaIN schedule.

    Raises:
        LampError: the sampler does not step through the scheduler's noise levels.
    """
    import comfy.samplers

    if name in _OWN_LEVELS and schedule.mode != "off":
        raise LampError(
            f"The sampler '{name}' chooses its own noise levels, so AdaIN has no steps to follow: "
            "choose another sampler (ddim or euler is the paper's) or set AdaIN to off."
        )
    return with_adain(comfy.samplers.sampler_object(name), schedule)


def with_adain(sampler: Any, schedule: AdaINSchedule) -> Any:
    """Wrap a SAMPLER (KSAMPLER) so that AdaIN acts on its state after each step."""
    import comfy.samplers

    inner = sampler.sampler_function

    def sample(model: Any, x: Tensor, sigmas: Tensor, **kwargs: Any) -> Tensor:
        watched = _BetweenSteps(model, sigmas, schedule, kwargs["extra_args"]["model_options"])
        return watched.finish(inner(watched, watched.start(x), sigmas, **kwargs))

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
        """The official sampler takes plain noise as x_T at timestep 981, where the host, knowing
        that 981 is not the very last level, would scale it down by 0.3 %."""
        sigma = self._sigmas[0]
        if self._sigmas[-1] == 0 or sigma < self._model_sampling().sigmas[-100]:
            return x
        latent = self._model.latent_image
        return latent + (x - latent) * (1 + sigma**-2) ** 0.5

    def finish(self, x: Tensor) -> Tensor:
        """AdaIN after the last step and after the loop, in the scale of the clean latent."""
        sigma = self._sigmas[-1]
        x = self._adapt(x, sigma, self._steps - 1) / (1 + sigma**2) ** 0.5
        video = torch.cat([self._first.to(x), x[1:]])
        return self._schedule.after_loop(video, x.shape[0])

    def _adapt(self, x: Tensor, sigma: Tensor, step: int) -> Tensor:
        scale = (1 + sigma**2) ** 0.5
        video = torch.cat([self._first.to(x), x[1:] / scale])
        adapted = self._schedule.after_step(video, step, self._steps, x.shape[0])
        return torch.cat([x[:1], adapted[1:] * scale])

    def _model_sampling(self) -> Any:
        return self._model.inner_model.inner_model.model_sampling
