"""Adaptive instance normalisation (AdaIN) of latents between frames (supplement alg. 1)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import LampError
from .noise import split_videos
from .schedule import TRAIN_TIMESTEPS

AdaINMode = Literal["paper", "official", "off", "custom"]

OFFICIAL_LAST_FIRST_PHASE_STEP = 30
"""The official code compares the step index with 30, whatever the number of steps."""


def adain(content: Tensor, style: Tensor, eps: float = 1e-8) -> Tensor:
    """Give ``content`` the mean and std of ``style``, per image and channel over h, w.

    Both are ``... c h w``; leading dimensions broadcast. ``eps`` is added to the unbiased variance,
    which is 0 for a single pixel. Half-precision input is computed in float32, because ``eps``
    vanishes in fp16.
    """
    x = content.float() if content.dtype in (torch.float16, torch.bfloat16) else content
    target = style.to(x.dtype)
    variance, mean = _var_mean(x)
    target_variance, target_mean = _var_mean(target)
    scale = (target_variance + eps).sqrt() / (variance + eps).sqrt()
    return ((x - mean) * scale + target_mean).to(content.dtype)


def _var_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    pixels = x.shape[-2] * x.shape[-1]
    return torch.var_mean(x, dim=(-2, -1), keepdim=True, correction=min(pixels - 1, 1))


@dataclass(frozen=True)
class AdaINSchedule:
    """Which frame's statistics the later frames take after each sampling step.

    - ``paper``: supplement alg. 1. While t > 20 of 50 (timesteps above 401), frames 3.. take the
      statistics of frame 2; afterwards frames 2.. take those of frame 1.
    - ``official``: as the published code. The first phase lasts 31 steps, whatever their number;
      then frame 2 takes the statistics of frame 1, and frames 3.. those of the new frame 2; after
      the loop frames 2.. take those of frame 1 once more.
    - ``off``: no AdaIN.
    - ``custom``: as ``paper``, but the first phase lasts the share ``switch`` of the timesteps, and
      each phase has a strength from 0 (unchanged) to 1 (AdaIN).

    ``switch`` and the strengths apply to ``custom`` only.
    Raises LampError for an unknown mode or a value outside 0..1.
    """

    mode: AdaINMode = "paper"
    switch: float = 0.6
    first_strength: float = 1.0
    second_strength: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(AdaINMode):
            modes = ", ".join(get_args(AdaINMode))
            raise LampError(f"Unknown AdaIN mode '{self.mode}'. Choose one of: {modes}.")
        for name in ("switch", "first_strength", "second_strength"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise LampError(f"AdaIN {name} must lie between 0 and 1, not {value:g}.")

    def position(self, step: int, steps: int, timestep: int) -> tuple[int, int]:
        """The pair ``(step, steps)`` to pass to the methods below.

        ``official`` counts the steps themselves. The other modes use the noise level at which a
        step begins, ``timestep`` (0..999), so that schedules of any spacing, and parts of a
        schedule, switch at the same noise level.
        """
        if self.mode == "official":
            return step, steps
        return TRAIN_TIMESTEPS - timestep, TRAIN_TIMESTEPS

    def in_first_phase(self, step: int, steps: int) -> bool:
        """Whether step number ``step`` (from 0) of ``steps`` belongs to the first phase."""
        if self.mode == "official":
            return step <= OFFICIAL_LAST_FIRST_PHASE_STEP
        if self.mode == "custom":
            return step < round(self.switch * steps)
        t = steps - 1 - step
        return 50 * t > 20 * steps  # in integers, so that rounding cannot move the switch

    def after_step(self, x: Tensor, step: int, steps: int, frames: int) -> Tensor:
        """Apply AdaIN to latents ``(b f) c h w`` after step ``step`` (from 0) of ``steps``.

        ``x`` has the scale of the DDPM sample (not divided by sqrt(alpha_bar)). Frame 1 of each
        video is the clean latent and is returned bit for bit. Raises LampError if the batch does
        not consist of whole videos of ``frames`` frames.
        """
        if self.mode == "off":
            return x
        videos = split_videos(x, frames)
        if self.in_first_phase(step, steps):
            return _adapt_after(videos, 2, self._strength(self.first_strength)).reshape(x.shape)
        if self.mode == "official" and frames > 1:
            videos = torch.cat([_adapt_after(videos[:, :2], 1), videos[:, 2:]], dim=1)
            return _adapt_after(videos, 2).reshape(x.shape)
        return _adapt_after(videos, 1, self._strength(self.second_strength)).reshape(x.shape)

    def after_loop(self, x: Tensor, frames: int) -> Tensor:
        """Latents ``(b f) c h w`` after the sampling loop; ``official`` applies AdaIN once more."""
        if self.mode != "official":
            return x
        return _adapt_after(split_videos(x, frames), 1).reshape(x.shape)

    def _strength(self, strength: float) -> float:
        return strength if self.mode == "custom" else 1.0


PAPER = AdaINSchedule("paper")


def _adapt_after(videos: Tensor, style: int, strength: float = 1.0) -> Tensor:
    """Frames after frame ``style`` (from 1) of ``b f c h w`` take its statistics."""
    kept, rest = videos[:, :style], videos[:, style:]
    if strength == 0.0 or rest.shape[1] == 0:
        return videos
    adapted = adain(rest, kept[:, -1:])
    return torch.cat([kept, torch.lerp(rest, adapted, strength)], dim=1)
