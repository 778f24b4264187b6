"""The protocol between the method and the hosts: ComfyUI's UNet and diffusers' UNet."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Host(Protocol):
    """An image diffusion model, as training and sampling use it.

    - ``unet``: the module to which motions attach;
    - ``dtype``: in which it computes;
    - ``alphas_cumprod``: the noise schedule, one value per timestep (alpha-bar of paper eq. 2);
    - ``v_prediction``: the UNet was trained to predict v, as SD 2.x at 768 pixels, not the noise.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    v_prediction: bool

    @property
    def dtype(self) -> torch.dtype: ...

    def compute_in(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on, with frozen weights of that dtype unless the layers cast
        them by themselves."""
        ...

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Predict the noise; a host converts the output of a v-prediction UNet.

        Args:
            x: `(b f) c h w` latents in DDPM scale (x_t of paper eq. 2).
            timesteps: `b`, 0..999; all frames of a video share one, including the clean frame 1.
            text: `b n d`, one prompt per video; for SD-XL `b n d+p`, see `lamp.method.prompts`.

        Returns:
            `(b f) c h w` in fp32 or better.
        """
        ...
