"""Starting noise for ComfyUI's samplers, marked so that it is never mixed a second time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import LampError
from ..noise import draw_noise, share_noise
from .comfy import SHARED_NOISE


@dataclass(frozen=True)
class SharedNoise:
    """A NOISE of the host: one seeded draw, shared between the frames (paper eq. 6)."""

    seed: int
    alpha: float

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise `f c h w` for a LATENT of that shape."""
        return shared_noise(input_latent["samples"], self.seed, self.alpha)


def shared_noise(latent: Tensor, seed: int, alpha: float) -> Tensor:
    """Noise for a latent `f c h w`, drawn as the official code draws it, and mixed.

    Raises:
        LampError: the latent is no video of at least two frames.
    """
    if latent.ndim != 4 or latent.shape[0] < 2:
        raise LampError(
            f"A video needs a latent of at least 2 frames; this one is {describe_latent(latent)}. "
            "Make it with LAMP First-Frame Condition (16 frames)."
        )
    frames, channels, height, width = latent.shape
    return mark_shared(share_noise(draw_noise(frames, channels, height, width, seed), alpha))


def mark_shared(noise: Tensor) -> Tensor:
    """A view of the noise that a bound MODEL takes as it is."""
    noise = noise.view_as(noise)
    setattr(noise, SHARED_NOISE, True)
    return noise


def given_noise(noise: Tensor, latent: Tensor) -> Tensor:
    """Noise that somebody else made, taken as it is.

    Raises:
        LampError: it is not of the latent's shape.
    """
    if noise.shape != latent.shape:
        raise LampError(
            f"The noise is {describe_latent(noise)}, the latent is {describe_latent(latent)}: make "
            "the noise from the same latent (Shared Noise Latents), with the same number of frames."
        )
    return mark_shared(noise)


def describe_latent(latent: Tensor) -> str:
    """The shape of a latent batch for people."""
    if latent.ndim != 4:
        return f"of the shape {tuple(latent.shape)}"
    frames, channels, height, width = latent.shape
    return f"{frames} frame{'s' * (frames != 1)} of {channels} x {height} x {width}"
