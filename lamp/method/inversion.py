"""DDIM inversion: from a clean video back to the noise it could have come from (paper sec. 5.2)."""

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
    """The timesteps on the way up: 1, 21, ..., 981 for 50 steps.

    Args:
        strength: how far up, as a share of the steps; 0.6 of 50 steps ends at 581.

    Raises:
        LampError: the strength lies outside 0..1, or leaves no step.
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
    """Invert videos under the tuned model without guidance, as the official code does.

    Unlike in sampling no frame is kept clean: frame 1 takes its noise with the others, and gives
    them its keys and values as it is at each step. For editing, the edited frame 1 takes its place.

    Args:
        video: `(b f) c h w`, clean latents.
        text: `b n d`, the embedding of the empty prompt.
        strength: see `inversion_timesteps`.
        callback: called with the step's index and the latents after it.

    Returns:
        `(b f) c h w` latents of the last timestep, starting noise for `sample` if the strength is
        1; it is shared between the frames by its nature, and never mixed.

    Raises:
        LampError: as `inversion_timesteps`.
    """
    x, videos = video, text.shape[0]
    with motion.attached(host.unet, FrameLayout(len(x) // videos, videos), groupnorm=groupnorm):
        for step, timestep in enumerate(inversion_timesteps(steps, strength)):
            # The noise is predicted at the level that the step leads to, from the one before it.
            eps = host.predict(x, torch.full((videos,), timestep), text)
            before = next_alpha(host.alphas_cumprod, timestep, steps)
            x = ddim_step(x, eps, before, host.alphas_cumprod[timestep])
            if callback is not None:
                callback(step, x)
    return x
