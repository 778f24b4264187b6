"""The LAMP sampler: DDIM on frames 2.. under guidance, with AdaIN (supplement alg. 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .adain import AdaINSchedule
from .host import Host
from .layout import FrameLayout
from .masks import MotionMask, all_hold, hold_first_frame, motion_masks_of, restore_held
from .motion import ActiveMotion, Motion, attached
from .prompts import stack_prompts
from .schedule import ddim_step, ddim_timesteps, next_alpha
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
    schedule: AdaINSchedule,
    groupnorm: str = "pooled",
    windows: Windows | None = None,
    motion_mask: MotionMask | None = None,
    others: Sequence[ActiveMotion] = (),
    callback: StepCallback | None = None,
) -> Tensor:
    """Predict frames 2..f of videos from their first frames.

    Args:
        first: `b c h w`, clean latents of frame 1.
        noise: `(b f) c h w`, already shared (paper eq. 6); frame 1's slot is replaced by `first`.
        cond, uncond: `b n d` text embeddings; `uncond` is not needed at guidance 1.
        windows: show the model a long video in pieces; without, all frames at once.
        motion_mask: where and in which frames the motion acts; without, everywhere.
        others: further motions, which act beside it.
        callback: called with the step's index and the latents after it, AdaIN included.

    Returns:
        `(b f) c h w`; frame 1 is `first`, bit for bit.

    Raises:
        LampError: an motion_mask is for another number of frames.
    """
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
    with attached(host.unet, motions, layout, groupnorm=groupnorm):
        for step, timestep in enumerate(ddim_timesteps(steps)):

            def predict(rows: Tensor, x: Tensor = x, timestep: int = timestep) -> Tensor:
                layout.frame_indices = tuple((rows[:seen] % frames).tolist())
                unguided = uncond if guided else None
                return predict_guided(host, x[rows], timestep, cond, unguided, guidance)

            eps = predict_in_windows(predict, x, windows, frames)
            alpha = host.alphas_cumprod[timestep]
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
    """The clean latents that `x` is made of, if `eps` is its noise (paper eq. 2)."""
    return (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()


def predict_guided(
    host: Host, x: Tensor, timestep: int, cond: Tensor, uncond: Tensor | None, guidance: float
) -> Tensor:
    """Classifier-free guidance, uncond and cond in one batch. x: `(b f) c h w`."""
    if uncond is None:
        return host.predict(x, torch.full((cond.shape[0],), timestep), cond)
    text = stack_prompts([uncond, cond])
    both = host.predict(torch.cat([x, x]), torch.full((text.shape[0],), timestep), text)
    base, conditioned = both.chunk(2)
    return base + guidance * (conditioned - base)


def with_first_frame(x: Tensor, first: Tensor) -> Tensor:
    """`(b f) c h w` with frame 1 of each video replaced by `first` (b c h w)."""
    video = x.unflatten(0, (first.shape[0], -1))
    return torch.cat([first[:, None].to(video), video[:, 1:]], dim=1).flatten(0, 1)
