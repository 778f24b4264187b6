"""Stable Diffusion's noise schedule and the DDIM step (paper eq. 2), as the official scheduler."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LampError

TRAIN_TIMESTEPS = 1000
BETAS = (0.00085, 0.012)


def scaled_linear_alphas(
    start: float = BETAS[0], end: float = BETAS[1], steps: int = TRAIN_TIMESTEPS
) -> Tensor:
    """Alpha-bar of paper eq. 2, float32, one value per timestep."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def ddim_timesteps(steps: int) -> list[int]:
    """`steps` descending timesteps with offset 1: 981, 961, ..., 1 for 50.

    Raises:
        LampError: fewer than 1 or more than 1000 steps.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise LampError(f"steps is {steps}: choose a number from 1 to {TRAIN_TIMESTEPS}.")
    stride = TRAIN_TIMESTEPS // steps
    return [min(i * stride + 1, TRAIN_TIMESTEPS - 1) for i in reversed(range(steps))]


def nearest_timestep(sigma: Tensor) -> int:
    """The timestep of Stable Diffusion's schedule whose noise level is nearest to `sigma`, which is
    the ratio of noise to signal."""
    alphas = scaled_linear_alphas().double()
    levels = ((1 - alphas) / alphas).sqrt().log()
    ratio = sigma.double().cpu().clamp(max=1e6)  # all noise has none
    return int((levels - ratio.log()).abs().argmin())


def next_alpha(alphas: Tensor, timestep: int, steps: int) -> Tensor:
    """Alpha-bar after a step; below timestep 0 it is alphas[0] (set_alpha_to_one False)."""
    return alphas[max(timestep - TRAIN_TIMESTEPS // steps, 0)]


def ddim_step(x: Tensor, eps: Tensor, alpha: Tensor, alpha_next: Tensor) -> Tensor:
    """One DDIM step with eta 0 from alpha-bar `alpha` to `alpha_next`, in either direction."""
    x0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    return alpha_next.sqrt() * x0 + (1 - alpha_next).sqrt() * eps


def noise_from_v(v: Tensor, x: Tensor, alphas: Tensor) -> Tensor:
    """The noise in `x` from a v-prediction (SD 2.x at 768 pixels):
    v = sqrt(alpha) noise - sqrt(1 - alpha) x_0 (Salimans and Ho 2022).

    Args:
        v, x: `(b f) c h w`.
        alphas: alpha-bar, `b`.
    """
    frames = x.shape[0] // alphas.shape[0]
    alpha = alphas.to(v).repeat_interleave(frames)[:, None, None, None]
    return alpha.sqrt() * v + (1 - alpha).sqrt() * x.to(v)


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """x_t of paper eq. 2; the alpha-bar `alpha` broadcasts against `x0`."""
    return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise


def shift_timesteps(timesteps: Tensor, shift: float) -> Tensor:
    """Timesteps moved towards noise: t -> s t / (1 + (s - 1) t), with t from 0 to 1.

    The shift of Esser et al. 2024 (eq. 23), here to train more where the motion is decided. A
    shift of 1 changes nothing.
    """
    if shift == 1.0:
        return timesteps
    share = (timesteps.double() + 0.5) / TRAIN_TIMESTEPS
    share = shift * share / (1.0 + (shift - 1.0) * share)
    return (share * TRAIN_TIMESTEPS).long()
