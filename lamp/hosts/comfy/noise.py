"""Starting noise for ComfyUI's samplers, marked so that it is never mixed twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import LampError
from ...method.noise import draw_noise, share_noise

# Marks a noise tensor that is shared already (paper eq. 6), so that it is never mixed twice.
SHARED_NOISE = "lamp_shared_noise"
# Key in a LATENT of inverted noise, and attribute of the tensor: its noise level (sigma).
NOISE_LEVEL = "lamp_noise_level"


@dataclass(frozen=True)
class SharedNoise:
    """A NOISE of ComfyUI: a seeded draw, shared between the frames (paper eq. 6)."""

    seed: int
    alpha: float

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise `f c h w` for a LATENT of this shape."""
        seed_others(self.seed)
        return shared_noise(input_latent["samples"], self.seed, self.alpha)


def seed_others(seed: int) -> None:
    """Seed PyTorch's global generator, as ComfyUI's noise does: patches of the run draw from it,
    such as ToMe and HyperTile."""
    torch.manual_seed(seed)


def shared_noise(latent: Tensor, seed: int, alpha: float) -> Tensor:
    """Noise for a latent `f c h w`, drawn as in the official code and shared (paper eq. 6).

    Raises:
        LampError: the latent is not a video of at least two frames.
    """
    if latent.ndim != 4 or latent.shape[0] < 2:
        raise LampError(
            f"A video needs a latent of at least 2 frames; this one is {describe_latent(latent)}. "
            "Make it with LAMP First-Frame Condition (16 frames)."
        )
    frames, channels, height, width = latent.shape
    return mark_shared(share_noise(draw_noise(frames, channels, height, width, seed), alpha))


def plain_noise(latent: Tensor, seed: int) -> Tensor:
    """ComfyUI's noise for a latent, without seeding PyTorch's global generator as ComfyUI does."""
    return torch.randn(latent.shape, generator=torch.Generator("cpu").manual_seed(seed))


@dataclass(frozen=True)
class GivenNoise:
    """A NOISE of ComfyUI that returns given noise unchanged. `level` as in `mark_shared`."""

    noise: Tensor
    seed: int = 0
    level: float | None = None

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """The noise, for a LATENT of its shape."""
        seed_others(self.seed)
        return given_noise(self.noise, input_latent["samples"], self.level)


def mark_shared(noise: Tensor, level: float | None = None) -> Tensor:
    """A view of the noise that a MODEL with a motion uses unchanged.

    Args:
        level: the noise level (sigma) to which a clip was inverted; sampling must begin there.
    """
    noise = noise.view_as(noise)
    setattr(noise, SHARED_NOISE, True)
    setattr(noise, NOISE_LEVEL, level)
    return noise


def given_noise(noise: Tensor, latent: Tensor, level: float | None = None) -> Tensor:
    """Noise from another source, to be used unchanged; see `mark_shared`.

    Raises:
        LampError: its shape differs from the latent's.
    """
    if noise.shape != latent.shape:
        raise LampError(
            f"The noise is {describe_latent(noise)}, the latent is {describe_latent(latent)}: "
            "create the noise from the same latent (Shared Noise Latents), with the same number "
            "of frames."
        )
    return mark_shared(noise, level)


def describe_latent(latent: Tensor) -> str:
    """The shape of a latent batch, for messages."""
    if latent.ndim != 4:
        return f"of shape {tuple(latent.shape)}"
    frames, channels, height, width = latent.shape
    return f"{frames} frame{'s' * (frames != 1)} of {channels} x {height} x {width}"
