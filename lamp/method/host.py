"""The two hosts of a motion: ComfyUI's own UNet, and diffusers' UNet2DConditionModel."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Host(Protocol):
    """An image diffusion model as tuning and sampling see it.

    `v_prediction`: its UNet was trained to predict v (SD 2.x at 768 pixels), and not noise.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    v_prediction: bool

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predicted noise, whatever the UNet itself predicts.

        Args:
            x: `(b f) c h w` latents in DDPM scale (x_t of paper eq. 2).
            timesteps: `b`, 0..999; all frames of a video share one, the clean frame 1 too.
            text: `b n d`, one prompt a video; for SD-XL `b n d+p`, see `lamp.method.prompts`.
        """
        ...
