"""DDIM inversion in ComfyUI: its sampling loop with ascending noise levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import LampError
from ...method.inversion import inversion_timesteps
from ...method.sampling import StepCallback
from ...method.schedule import ddim_step
from .binding import bound_motion
from .latent import check_one_video
from .levels import is_flow
from .noise import describe_latent, mark_shared, seed_others
from .preview import show_middle_frame
from .run import KEY
from .sampler import sigmas_at


@dataclass(frozen=True)
class Inverted:
    """A video inverted to noise.

    Attributes:
        latents: `f c h w`, the DDPM sample at the last timestep.
        noise: `f c h w`, starting noise with which a sampler of ComfyUI begins there.
        level: ComfyUI's noise level (sigma) of that timestep.
        steps, denoise: settings with which a sampler visits the same timesteps in reverse.
    """

    latents: Tensor
    noise: Tensor
    level: float
    steps: int
    denoise: float


def invert_video(
    model: Any,
    conditioning: Any,
    latent: dict[str, Any],
    *,
    steps: int = 50,
    strength: float = 1.0,
    on_step: StepCallback | None = None,
) -> Inverted:
    """Invert all frames of a LATENT without guidance (`method.inversion.invert`), with previews.

    Args:
        model: a MODEL with a motion.
        conditioning: the empty prompt, as CONDITIONING.
        strength: share of the steps to take.
        on_step: called with the step's index and the DDPM sample after it.

    Raises:
        LampError: the model has no motion, a frame of the latent is empty, or no step is left.
    """
    import comfy.sample
    import comfy.samplers
    import comfy.utils

    bound_motion(model)
    if is_flow(model.get_model_object("model_sampling")):
        raise LampError(
            "Inversion follows the noise of SD 1.x and 2.x, but this MODEL is a flow model: remove "
            "ModelSamplingSD3 or ModelSamplingFlux from it."
        )
    video = latent["samples"]
    _check_whole(video)
    check_one_video(video, latent.get("batch_index"))
    seed_others(0)
    timesteps = inversion_timesteps(steps, strength)
    count = len(timesteps)
    sigmas = sigmas_at(model, [0, *timesteps])
    states: list[Tensor] = []

    def keep(step: int, x: Tensor) -> None:
        states[:] = [x]
        if on_step is not None:
            on_step(step, x)

    comfy.sample.sample_custom(
        model,
        mark_shared(torch.zeros_like(video)),
        1.0,
        comfy.samplers.KSAMPLER(_ascending(keep)),
        sigmas,
        conditioning,
        conditioning,
        video,
        callback=show_middle_frame(model, count),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
    )
    # The loop returns the clean frame 1 and the scale of clean latents instead.
    latents = states[0].float().cpu()
    return Inverted(
        latents,
        noise=mark_shared(latents * (1.0 if count == steps else _noise_scale(sigmas))),
        level=sigmas[-1].item(),
        steps=count,
        # Slightly less, so that ComfyUI's int(steps / denoise) is not one too few.
        denoise=1.0 if count == steps else count / steps * (1 - 1e-9),
    )


def _check_whole(video: Tensor) -> None:
    empty = [number for number, frame in enumerate(video, start=1) if not frame.any()]
    if video.ndim == 4 and empty:
        raise LampError(
            f"Frame {empty[0]} of the video's latent is empty: inversion needs every frame, so "
            "connect VAE Encode with all frames of the clip, not LAMP First-Frame Condition. The "
            f"latent is {describe_latent(video)}."
        )


def _noise_scale(sigmas: Tensor) -> float:
    """ComfyUI starts from noise * sigma; the DDPM sample is its latent / sqrt(1 + sigma^2).

    Only at the start of the whole official schedule is the noise the sample itself.
    """
    return (1 + sigmas[-1].item() ** -2) ** 0.5


def _ascending(keep: StepCallback) -> Callable[..., Tensor]:
    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> Tensor:
        # Without it, frame 1 is not replaced by the clean one.
        extra_args["model_options"]["transformer_options"][KEY].first = None
        # The official code treats the clean latents as the sample at the lowest level.
        alphas = 1 / (1 + sigmas.to(x.device) ** 2)
        for step, sigma in enumerate(sigmas[1:].to(x.device)):
            shown = x * (1 + sigma**2).sqrt()
            denoised = model(shown, sigma.expand(len(x)), **extra_args)
            x = ddim_step(x, (shown - denoised) / sigma, alphas[step], alphas[step + 1])
            keep(step, x)
            if callback is not None:
                callback({"i": step, "denoised": denoised, "x": x, "sigma": sigma})
        return x

    return sample
