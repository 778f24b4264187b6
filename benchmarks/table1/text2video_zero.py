"""Text2Video-Zero (Khachatryan et al. 2023): an image model makes a video without training.

- Spatial self-attention takes keys and values from frame 1 in every frame (LAMP's eq. 5).
- Motion dynamics: frame 1, noisy at T' = 881, is moved by (k - 1) lambda (1, 1) for frame k, and
  DDPM noise is added to bring these frames to T = 941:
  x_T = sqrt(a_T / a_T') x_T' + sqrt(1 - a_T / a_T') e, with alpha-bar a. All frames are then drawn
  together from T on.
- lambda is 12 pixels of 512, as published, in proportion to the latents. The direction and length
  do not depend on the prompt: the method knows nothing of the motion asked for.

The published method generates frame 1 from noise. Here it gets the same first frame as LAMP: DDIM
inverts the picture with its prompt, and frame 1 follows the states of the inversion. It ends as the
given picture, and its keys and values are those of the picture at every step. The optional
background smoothing, which needs a detector of salient objects, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.attention import first_frame_kv
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.schedule import add_noise, ddim_step, ddim_timesteps, next_alpha
from lamp.toy.base import ToyBase

from .denoising import denoise

WARPED, STARTED = 881, 941  # T' and T
PACE = 12 / 512  # of the picture's side, in each direction and frame
STEPS = 50


@contextmanager
def cross_frame_attention(unet: nn.Module, layout: FrameLayout) -> Iterator[None]:
    """Keys and values of spatial self-attention from frame 1."""
    with ExitStack() as stack:
        for block in map_unet(unet).blocks:
            first_frame_kv(unet.get_submodule(f"{block.module}.attn1"), layout, stack)
        yield


def moved(x: Tensor, right: float, down: float) -> Tensor:
    """`... h w` moved by a number of places, rounded to whole ones so that noise stays noise.

    What comes in from outside is the mirrored picture, as published.
    """
    rows = _mirrored(x.shape[-2], round(down))
    columns = _mirrored(x.shape[-1], round(right))
    return x[..., rows, :][..., columns]


def _mirrored(size: int, by: int) -> Tensor:
    places = (torch.arange(size) - by) % (2 * size)
    return torch.where(places < size, places, 2 * size - 1 - places)


@torch.no_grad()
def inverted(host: Host, first: Tensor, cond: Tensor) -> dict[int, Tensor]:
    """The pictures `b c h w` at each timestep up to T, by DDIM inversion; 0 is the clean one."""
    states, x = {0: first}, first
    for timestep in reversed(ddim_timesteps(STEPS)):
        if timestep > STARTED:
            break
        eps = host.predict(x, torch.full((len(x),), timestep), cond)
        before = next_alpha(host.alphas_cumprod, timestep, STEPS)
        x = ddim_step(x, eps, before, host.alphas_cumprod[timestep])
        states[timestep] = x
    return states


def motion_dynamics(
    host: Host, states: dict[int, Tensor], frames: int, generator: torch.Generator
) -> Tensor:
    """Latents `(b f) c h w` at T: frame 1 is its own, the others are moved copies of it at T', with
    noise."""
    start, warped = states[STARTED], states[WARPED]
    share = host.alphas_cumprod[STARTED] / host.alphas_cumprod[WARPED]
    video = [start]
    for frame in range(1, frames):
        steps = (PACE * frame * side for side in (warped.shape[-1], warped.shape[-2]))
        noise = torch.randn(warped.shape, generator=generator)
        video.append(add_noise(moved(warped, *steps), noise, share))
    return torch.stack(video, dim=1).flatten(0, 1)


def videos_from(
    toy: ToyBase, first: Tensor, prompts: list[str], frames: int, seed: int, guidance: float
) -> Tensor:
    """Latents `(b f) c h w` of videos that begin with the latents `first`, `b c h w`."""
    host, cond = DiffusersHost(toy.unet), toy.encode_text(prompts)
    states = inverted(host, first, cond)
    generator = torch.Generator().manual_seed(seed)
    return denoise(
        host,
        lambda layout: cross_frame_attention(toy.unet, layout),
        motion_dynamics(host, states, frames, generator),
        cond,
        toy.encode_text([""]).expand(len(prompts), -1, -1),
        guidance,
        STEPS,
        firsts=list(reversed(states.values())),
    )
