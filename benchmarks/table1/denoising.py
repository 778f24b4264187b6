"""DDIM over all frames of a video, for the methods whose frame 1 is not given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.sampling import predict_guided
from lamp.method.schedule import ddim_step, ddim_timesteps, next_alpha

Attach = Callable[[FrameLayout], AbstractContextManager[None]]
"""Attaches a method's layers to the UNet for batches of this layout."""


@torch.no_grad()
def denoise(
    host: Host,
    attach: Attach,
    x: Tensor,
    cond: Tensor,
    uncond: Tensor,
    guidance: float,
    steps: int,
    firsts: Sequence[Tensor] = (),
) -> Tensor:
    """Clean latents `(b f) c h w` of noisy ones, by DDIM with eta 0.

    Args:
        attach: the method's layers.
        x: at the first timestep of `firsts` if given, otherwise at the noisiest one.
        cond, uncond: `b n d`.
        firsts: frame 1, `b c h w`, as it is before each of the last steps and at the end. It is put
            in place of what the model makes of it.
    """
    videos = len(cond)
    guided = guidance != 1.0
    layout = FrameLayout(len(x) // videos, videos * (2 if guided else 1))
    visited = ddim_timesteps(steps)
    if firsts:
        visited = visited[1 - len(firsts) :] if len(firsts) > 1 else []
    with attach(layout):
        for number, timestep in enumerate(visited):
            if firsts:
                x = with_frame(x, firsts[number])
            given = (cond, uncond if guided else None, guidance)
            eps = predict_guided(host, x, timestep, *given, layout)
            alpha = host.alphas_cumprod[timestep]
            x = ddim_step(x, eps, alpha, next_alpha(host.alphas_cumprod, timestep, steps))
    return with_frame(x, firsts[-1]) if firsts else x


def with_frame(x: Tensor, first: Tensor) -> Tensor:
    """`(b f) c h w` with `first`, `b c h w`, as frame 1 of each video."""
    video = x.unflatten(0, (len(first), -1)).clone()
    video[:, 0] = first
    return video.flatten(0, 1)
