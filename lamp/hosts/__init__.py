"""The two hosts of a motion: ComfyUI's own UNet, and diffusers' UNet2DConditionModel."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Host(Protocol):
    """An image diffusion model as tuning and sampling see it."""

    unet: nn.Module
    alphas_cumprod: Tensor

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predicted noise.

        Args:
            x: `(b f) c h w` latents in DDPM scale (x_t of paper eq. 2).
            timesteps: `b`, 0..999; all frames of a video share one, the clean frame 1 too.
            text: `b n d`, one prompt a video.
        """
        ...
