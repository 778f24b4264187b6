"""Starting noise of a video: a seeded draw, then shared between frames (paper eq. 6)."""

import torch
from torch import Tensor

from ..errors import LampError

SHARED_NOISE_ALPHA = 0.2
"""Weight of the shared noise (paper eq. 6)."""


def draw_noise(
    frames: int, channels: int, height: int, width: int, seed: int, videos: int = 1
) -> Tensor:
    """Independent standard normal noise ``(b f) c h w`` in float32 on the CPU.

    The values are drawn as one tensor ``b c f h w`` from a CPU generator, so that a seed gives
    the same noise as in the official code, on every device.
    Raises LampError if a size is not positive.
    """
    sizes = {
        "videos": videos, "channels": channels, "frames": frames, "height": height, "width": width
    }  # fmt: skip
    for name, size in sizes.items():
        if size < 1:
            raise LampError(f"Noise needs a positive number of {name}, not {size}.")
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(videos, channels, frames, height, width, generator=generator)
    return noise.transpose(1, 2).reshape(videos * frames, channels, height, width)


def share_noise(
    noise: Tensor, alpha: float = SHARED_NOISE_ALPHA, frames: int | None = None
) -> Tensor:
    """Mix frame 1's noise into the others: ``n_f <- alpha n_1 + (1 - alpha) n_f`` (paper eq. 6).

    ``noise`` is ``(b f) c h w`` with ``frames`` frames per video (default: one video). Frame 1 is
    unchanged: the clean first frame will replace it, so its draw serves as the shared noise. As in
    the paper the result is not renormalised; at alpha 0.2 the other frames have variance 0.68.
    Raises LampError for an alpha outside 0..1, fewer than two frames, or an incomplete video.
    """
    if not 0.0 <= alpha <= 1.0:
        raise LampError(f"Shared noise alpha must lie between 0 and 1, not {alpha:g}.")
    frames = noise.shape[0] if frames is None else frames
    if frames < 2:
        raise LampError(
            f"Shared noise needs at least 2 frames, not {frames}: frame 1 is the given image."
        )
    by_video = split_videos(noise, frames)
    first, rest = by_video[:, :1], by_video[:, 1:]
    return torch.cat([first, alpha * first + (1.0 - alpha) * rest], dim=1).reshape(noise.shape)


def split_videos(x: Tensor, frames: int) -> Tensor:
    """View of ``(b f) ...`` as ``b f ...``; raises LampError if the videos are not complete."""
    if frames < 1 or x.shape[0] % frames:
        raise LampError(
            f"A batch of {x.shape[0]} images cannot be split into videos of {frames} frames. "
            "Use the same number of frames everywhere."
        )
    return x.reshape(x.shape[0] // frames, frames, *x.shape[1:])
