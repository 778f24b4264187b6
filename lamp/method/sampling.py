"""Sampling (supplement alg. 1): DDIM with guidance and a clean frame 1, AdaIN after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .adain import PAPER, AdaINSchedule
from .host import Host
from .layout import FrameLayout
from .masks import MotionMask, all_hold, hold_first_frame, restore_held
from .motion import ActiveMotion, Motion, attached, motion_masks_of
from .motion_guidance import check_motion_guidance, guide_motion, unconditional_scale
from .prompts import stack_prompts
from .schedule import add_noise, ddim_step, ddim_timesteps, next_alpha
from .windows import Windows, predict_in_windows

StepCallback = Callable[[int, Tensor], None]


@torch.no_grad()
def sample(
    host: Host,
    motion: Motion,
    first: Tensor,
    noise: Tensor,
    cond: Tensor,
    uncond: Tensor | None = None,
    *,
    steps: int = 50,
    guidance: float = 12.5,
    schedule: AdaINSchedule = PAPER,
    motion_guidance: float = 1.0,
    groupnorm: str = "pooled",
    windows: Windows | None = None,
    motion_mask: MotionMask | None = None,
    others: Sequence[ActiveMotion] = (),
    callback: StepCallback | None = None,
) -> Tensor:
    """Generate frames 2..f of videos from their first frames (supplement alg. 1).

    Args:
        first: `b c h w`, clean latents of frame 1.
        noise: `(b f) c h w`, already shared (paper eq. 6); `first` replaces its frame 1.
        cond, uncond: `b n d` text embeddings; `uncond` may be None at guidance 1.
        motion_guidance: amplifies the motion (`lamp.method.motion_guidance`); 1 is off.
        schedule: of AdaIN.
        windows: process a long video in windows; None processes all frames at once.
        motion_mask: where and in which frames the motion acts; None is everywhere.
        others: further motions that act at the same time.
        callback: called with the index of a step and the latents after its AdaIN.

    Returns:
        `(b f) c h w`; frame 1 is `first`, bit for bit.

    Raises:
        LampError: a mask is for another number of frames, or motion guidance is below 1.
    """
    check_motion_guidance(motion_guidance)
    videos = first.shape[0]
    frames = noise.shape[0] // videos
    x = with_first_frame(noise, first)
    guided = uncond is not None and guidance != 1.0
    seen = frames if windows is None else min(windows.length, frames)
    layout = FrameLayout(seen, videos * (2 if guided else 1), total=frames)
    motions = [*others, ActiveMotion(motion, motion_mask=motion_mask)]
    motion_masks = motion_masks_of(motions)
    for each in motion_masks:
        if each is not None:
            each.check(frames)
    timesteps = ddim_timesteps(steps)
    # Like the other frames it begins with its noise in full, although `alpha` is not quite zero.
    first_noise = noise[::frames] / (1 - host.alphas_cumprod[timesteps[0]]).sqrt()
    with attached(host.unet, motions, layout, groupnorm=groupnorm):
        for step, timestep in enumerate(timesteps):

            def predict(rows: Tensor, shown: Tensor, timestep: int = timestep) -> Tensor:
                layout.frame_indices = tuple((rows[:seen] % frames).tolist())
                given = (host, shown, timestep, cond, uncond if guided else None, guidance)
                return predict_guided(*given, layout, motion_guidance)

            alpha = host.alphas_cumprod[timestep]
            noisy_first = add_noise(first, first_noise, alpha)
            eps = predict_in_windows(predict, x, windows, frames, noisy_first)
            if all_hold(motion_masks):
                predicted = hold_first_frame(_predicted(x, eps, alpha), first, motion_masks)
                eps = (x - alpha.sqrt() * predicted) / (1 - alpha).sqrt()
            stepped = ddim_step(x, eps, alpha, next_alpha(host.alphas_cumprod, timestep, steps))
            position = schedule.position(step, steps, timestep)
            x = schedule.after_step(with_first_frame(stepped, first), *position, frames)
            if callback is not None:
                callback(step, x)
    x = schedule.after_loop(x, frames)
    if all_hold(motion_masks):
        x = with_first_frame(restore_held(x, predicted, motion_masks, videos=videos), first)
    return x


def _predicted(x: Tensor, eps: Tensor, alpha: Tensor) -> Tensor:
    """The clean latents of `x` if `eps` is its noise (paper eq. 2)."""
    return (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()


def predict_guided(
    host: Host,
    x: Tensor,
    timestep: int,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    layout: FrameLayout,
    motion_guidance: float = 1.0,
) -> Tensor:
    """Guidance by the prompt, uncond and cond in one batch, and by the motion. x: `(b f) c h w`.

    `layout` is that of the batch which the UNet sees.
    """
    text = cond if uncond is None else stack_prompts([uncond, cond])
    batch = x if uncond is None else torch.cat([x, x])
    timesteps = torch.full((text.shape[0],), timestep)

    def predict() -> Tensor:
        eps = host.predict(batch, timesteps, text)
        if uncond is None:
            return eps
        base, conditioned = eps.chunk(2)
        return base + guidance * (conditioned - base)

    if motion_guidance == 1.0:
        return predict()
    scale = None if uncond is None else unconditional_scale(guidance, motion_guidance)
    if scale is None:
        return guide_motion(predict, layout, motion_guidance)
    with layout.scaled_by([scale] * len(cond) + [1.0] * len(cond)):
        return predict()


def with_first_frame(x: Tensor, first: Tensor) -> Tensor:
    """`(b f) c h w` with frame 1 of each video replaced by `first` (b c h w)."""
    video = x.unflatten(0, (first.shape[0], -1))
    return torch.cat([first[:, None].to(video), video[:, 1:]], dim=1).flatten(0, 1)
