"""DDIM inversion of a video to noise, for editing (paper sec. 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LampError
from .host import Host
from .layout import FrameLayout
from .motion import Motion
from .sampling import StepCallback
from .schedule import ddim_step, ddim_timesteps, next_alpha


def inversion_timesteps(steps: int, strength: float = 1.0) -> list[int]:
    """Ascending timesteps: 1, 21, ..., 981 for 50 steps.

    Args:
        strength: share of the steps to take; 0.6 of 50 steps ends at 581.

    Raises:
        LampError: the strength is outside 0..1 or leaves no step.
    """
    if not 0.0 <= strength <= 1.0:
        raise LampError(f"The editing strength must lie between 0 and 1, not {strength:g}.")
    visited = ddim_timesteps(steps)[::-1][: round(strength * steps)]
    if not visited:
        raise LampError(
            f"{steps} steps at editing strength {strength:g} leave no step to invert: use more "
            "steps or a higher strength."
        )
    return visited


@torch.no_grad()
def invert(
    host: Host,
    motion: Motion,
    video: Tensor,
    text: Tensor,
    *,
    steps: int = 50,
    strength: float = 1.0,
    groupnorm: str = "pooled",
    callback: StepCallback | None = None,
) -> Tensor:
    """Invert videos with the motion and without guidance, as the official code does.

    Unlike in sampling, frame 1 is noised like all others; its keys and values at each step serve
    all frames. For editing, replace frame 1 with the edited picture afterwards.

    Args:
        video: `(b f) c h w`, clean latents.
        text: `b n d`, embedding of the empty prompt.
        strength: see `inversion_timesteps`.
        callback: called with the step's index and the latents after it.

    Returns:
        `(b f) c h w` latents at the last timestep: at strength 1, starting noise for `sample`. The
        frames already share it, so do not mix it again.

    Raises:
        LampError: as `inversion_timesteps`.
    """
    x, videos = video, text.shape[0]
    with motion.attached(host.unet, FrameLayout(len(x) // videos, videos), groupnorm=groupnorm):
        for step, timestep in enumerate(inversion_timesteps(steps, strength)):
            # The UNet gets the latents of the lower level with the timestep of the higher one.
            eps = host.predict(x, torch.full((videos,), timestep), text)
            before = next_alpha(host.alphas_cumprod, timestep, steps)
            x = ddim_step(x, eps, before, host.alphas_cumprod[timestep])
            if callback is not None:
                callback(step, x)
    return x
