"""Checks before sampling: the latent must be one video with a clean frame 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LampError

# A std from pixel to pixel, in the model's scale, that no picture reaches.
_ROUGHEST = 8.0
# Below this noise level, noise in frame 1 cannot be distinguished from texture.
_LEAST_SIGMA = 0.7


def check_latent(latent: Tensor, latent_format: Any) -> None:
    """Check that a latent `f c h w` is one video that fits a MODEL.

    Raises:
        LampError: it is not.
    """
    if latent.ndim != 4 or latent.shape[0] < 2:
        raise LampError(
            f"A LAMP motion needs a latent of at least 2 frames, not of shape "
            f"{tuple(latent.shape)}: make it with LAMP First-Frame Condition (16 frames)."
        )
    if latent.shape[1] != latent_format.latent_channels:
        raise LampError(
            f"The latent has {latent.shape[1]} channels, the MODEL needs "
            f"{latent_format.latent_channels}: make it with LAMP First-Frame Condition and the "
            "VAE of the SD 1.x checkpoint."
        )
    if not torch.isfinite(latent).all():
        raise LampError(
            "The latent contains NaN or infinite values: check the first frame's image and the "
            "VAE (SD 1.x VAEs can overflow in fp16; start ComfyUI with --fp32-vae)."
        )
    if not latent[0].any():
        raise LampError(
            "Frame 1 of the latent is empty, but a LAMP motion animates a given picture: connect "
            "LAMP First-Frame Condition instead of an empty latent."
        )
    check_one_video(latent)


def check_one_video(latent: Tensor, batch_index: list[int] | None = None) -> None:
    """Check that a latent contains one video, not several in a row.

    Args:
        batch_index: the numbers that ComfyUI's batch nodes give to the images of a LATENT.

    Raises:
        LampError: it contains several.
    """
    second = _second_video(latent, batch_index)
    if second is not None:
        raise LampError(
            f"The latent of {len(latent)} frames contains several videos or pictures: another one "
            f"begins with frame {second + 1}. A motion generates one video from its frame 1: "
            "remove Repeat Latent Batch or Latent Batch, and queue once per first frame or seed."
        )


def _second_video(latent: Tensor, batch_index: list[int] | None) -> int | None:
    """The index of the frame with which a second video begins, if any."""
    filled = [bool(frame.any()) for frame in latent]
    if not all(filled):
        return next((i for i, full in enumerate(filled) if i and full), None)
    if not torch.equal(latent[1:], latent[:-1]):  # not a still picture
        for length in range(2, len(latent) // 2 + 1):
            if len(latent) % length == 0 and torch.equal(latent[length:], latent[:-length]):
                return length
    numbers = batch_index or []
    return next((i for i in range(2, len(numbers)) if numbers[i] <= numbers[i - 1]), None)


def check_start(noise: Tensor, latent: Tensor, sigmas: Tensor, model: Any, sampling: Any) -> None:
    """Check that frame 1 is a clean picture; the other frames may contain noise already.

    Args:
        noise: the noise added to the latent at the first level; zeros if the frames contain it.
        model: ComfyUI's model, which knows the scale of its latents.

    Raises:
        LampError: frame 1 contains noise, or there is no noise for the other frames.
    """
    if not len(sigmas):
        return
    sigma = min(float(sigmas[0]), float(sampling.sigma_max))
    if sigma >= _LEAST_SIGMA and not noise.any() and not latent[1:].any():
        raise LampError(
            "There is no noise to generate the video from: the frames after frame 1 are empty, and "
            "the sampler adds none. Set add_noise to enable, or connect RandomNoise instead of "
            "DisableNoise."
        )
    if min(latent.shape[-2:]) < 2:
        return
    first, *others = (_roughness(frame) for frame in model.latent_format.process_in(latent))
    rest = sum(others) / len(others)
    noisy = min(first, rest) > _ROUGHEST**2
    if sigma >= _LEAST_SIGMA and not noise.any() and first > 0.75 * sigma**2:
        # Rough enough to contain noise of this level. A clean frame 1 that is as rough by itself
        # is smoother than the frames with noise by the variance of that noise.
        noisy |= rest - first < 0.25 * sigma**2
    if noisy:
        raise LampError(
            f"Frame 1 of the latent contains noise, and sampling begins at level {sigma:.2f}. A "
            "motion needs a clean frame 1 and returns it unchanged. Sample all steps with the "
            "motion on the MODEL, and let the sampler add the noise to the latent of LAMP "
            "First-Frame Condition (no Add Noise, no steps of a MODEL without the motion)."
        )


def _roughness(frame: Tensor) -> float:
    """Variance from pixel to pixel of a latent `c h w`. It equals the variance of white noise, and
    is small for a picture, where only texture contributes."""
    x = frame.float()
    across = x[:, 1:] - x[:, :-1]
    return ((across[..., 1:] - across[..., :-1]).square().mean() / 4).item()


def fill_protected(latent: Tensor, mask: Tensor | None) -> Tensor:
    """Fill the empty frames of a latent `f c h w` with frame 1 where a mask protects them.

    Elsewhere they stay empty, because ComfyUI adds the latent to the noise.

    Args:
        mask: 1 where the sampler may change the latent, 0 where it keeps it; of any size.
    """
    import comfy.sampler_helpers

    if mask is None:
        return latent
    mask = comfy.sampler_helpers.prepare_mask(mask, latent.shape, latent.device)
    empty = ~latent.flatten(1).any(1)[:, None, None, None]
    return torch.where(empty & (mask < 1), latent[:1], latent)


def mask_of_step(
    mask: Tensor | None, options: dict[str, Any], guider: Any, sigmas: Tensor, step: int
) -> Tensor | None:
    """The mask of the latent in a step: 1 where the sampler may change it, 0 where it keeps it.

    Args:
        options: model options, with a function if Differential Diffusion is on the MODEL: then the
            mask depends on the noise level.
    """
    function = options.get("denoise_mask_function")
    if mask is None or function is None:
        return mask
    told = {"model": guider, "sigmas": sigmas}
    changed: Tensor = function(sigmas[step : step + 1], mask, extra_options=told)
    return changed
