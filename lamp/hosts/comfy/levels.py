"""The noise levels (sigma) of a run: where they begin and end, and what may begin there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LampError
from .canvas import warn_below_running_node

_LEVEL_MARGIN = 1.25  # neighbouring levels of common schedules are closer
# At this level a picture is 4 % of the variance. Below, a start without one shows.
_LEAST_EMPTY_START = 5.0
_MARK = 6


def signal_and_noise(sampling: Any, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the picture and of the noise a sampler's state has at each level `n`: 1 and
    sigma, or 1 - sigma and sigma for flow models. Both `n`, on the device of `sigma`."""
    one, zero = sigma.new_ones(len(sigma), 1), sigma.new_zeros(len(sigma), 1)
    return (
        sampling.noise_scaling(sigma, zero, one)[:, 0],
        sampling.noise_scaling(sigma, one, zero)[:, 0],
    )


def is_flow(sampling: Any) -> bool:
    """Whether a state has less of the picture the more noise it has, as with ModelSamplingSD3."""
    return bool(signal_and_noise(sampling, torch.tensor([0.5]))[0] != 1)


def mark_start(sigmas: Tensor) -> Tensor:
    """Mark the official schedule: it begins six floats above the model's own level.

    ComfyUI's ddim_uniform has the same levels but scales its noise. The mark distinguishes the two
    even in a part of the schedule, and changes no timestep. Rounding leads other schedules to
    numbers beside a level too, but not to this one.
    """
    return torch.cat([_moved(sigmas[:1], _MARK), sigmas[1:]])


def starts_official(sigmas: Tensor, sampling: Any) -> bool:
    """Whether noise levels begin where `mark_start` marked the official schedule. Flow models have
    none."""
    if is_flow(sampling):
        return False
    begin = _moved(sigmas[:1].float().cpu(), -_MARK)
    return bool((sampling.sigmas.float().cpu() == begin).any())


def _moved(level: Tensor, floats: int) -> Tensor:
    """The float32 number that comes so many numbers after a positive one."""
    return (level.view(torch.int32) + floats).view(torch.float32)


def ends_clean(sigmas: Tensor, sampling: Any) -> bool:
    """Whether a schedule ends with a finished video rather than with latents to continue from.

    It does at sigma 0, and at the end of the official DDIM schedule, whose last step leads from
    timestep 1 to the lowest noise level.
    """
    if sigmas[-1] == 0:
        return True
    lowest = sampling.sigmas[:2].to(sigmas)
    return len(sigmas) > 1 and torch.allclose(sigmas[-2:].flip(0), lowest, rtol=1e-5)


def _lacks_steps(sigmas: Tensor, sampling: Any) -> bool:
    """Whether a schedule could have begun one step, of the size of its first one, earlier. A whole
    schedule of few steps may begin as low as a part of a long one."""
    if starts_official(sigmas, sampling):
        return False
    levels = sampling.sigmas.float().cpu()
    first, second = ((levels - float(sigma)).abs().argmin().item() for sigma in sigmas[:2])
    return first + (first - second) < len(levels)


def start_inverted(
    noise: Tensor, latent: Tensor, mask: Tensor | None, sigmas: Tensor, model: Any, sampling: Any
) -> tuple[Tensor, Tensor]:
    """Noise and latent with which ComfyUI, which adds the two, starts from inverted noise alone.

    The noise contains its clip already, so the frames of a latent would be there twice.

    Args:
        noise, latent: `f c h w`, inverted noise, and the latent in the VAE's scale.
        mask: of the latent; where it protects frames they stay in the latent.
        model: ComfyUI's model, which knows its scale.
        sampling: the model's, with the patches of this run.
    """
    import comfy.sampler_helpers

    kept = torch.zeros_like(latent, dtype=torch.bool)
    if mask is not None:
        kept = comfy.sampler_helpers.prepare_mask(mask, latent.shape, latent.device) < 1
    elif latent[1:].any():
        warn_below_running_node(
            "The video starts from frame 1 and the inverted noise: the other frames of latent are "
            "ignored."
        )
    latent = torch.cat([latent[:1], torch.where(kept, latent, 0)[1:]])
    if not len(sigmas):
        return noise, latent
    level = sigmas[0].to(noise)
    # The official start adds plain noise to the scaled-down latent.
    scale = (1 + level**2).sqrt() if starts_official(sigmas, sampling) else level
    return noise - model.process_latent_in(latent).to(noise) / scale, latent


def check_level(
    sigmas: Tensor, sampling: Any, latent: Tensor, inverted_to: float | None = None
) -> None:
    """Check that sampling of the frames `f c h w` may begin at the first level.

    Args:
        inverted_to: the level to which a clip was inverted; None for drawn noise.

    Raises:
        LampError: inverted noise is for another level, or the frames after frame 1 are empty and
            the level lies so far down the schedule that they would have to be there.
    """
    if len(sigmas) < 2:
        return  # no steps
    level = float(sigmas[0])
    if inverted_to is not None:
        if not 1 / _LEVEL_MARGIN < level / inverted_to < _LEVEL_MARGIN:
            raise LampError(
                f"The noise was inverted to level {inverted_to:.2f}, but sampling begins at "
                f"{level:.2f}: also connect the outputs steps and denoise of LAMP DDIM "
                "Inversion, and keep the scheduler ddim (official)."
            )
    elif level < _LEAST_EMPTY_START and not latent[1:].any() and _lacks_steps(sigmas, sampling):
        raise LampError(
            f"Sampling begins at noise level {level:.2f}, in the middle of the schedule, but the "
            "frames after frame 1 are empty: set denoise to 1 (start_at_step to 0), take more "
            "steps or another scheduler, or connect a latent with all frames. Frame 1 is kept in "
            "any case."
        )
