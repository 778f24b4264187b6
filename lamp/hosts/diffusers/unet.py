"""diffusers' UNet2DConditionModel as host: training from the command line, and a reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...clips.images import LATENT_STRIDE
from ...method.architecture import pooled_width, text_width
from ...method.prompts import split_pooled
from ...method.schedule import noise_from_v, scaled_linear_alphas


class DiffusersHost:
    """Runs a `UNet2DConditionModel` on batches of frames `(b f) c h w`.

    Args:
        v_prediction: the UNet predicts v, not the noise.
    """

    def __init__(self, unet: nn.Module, v_prediction: bool = False) -> None:
        self.unet, self.v_prediction = unet, v_prediction
        self._text_width = text_width(unet) if pooled_width(unet) else None
        self.alphas_cumprod = scaled_linear_alphas()

    @property
    def dtype(self) -> torch.dtype:
        """In which the UNet computes."""
        return next(self.unet.parameters(), self.alphas_cumprod).dtype

    def compute_in(self, dtype: torch.dtype) -> None:
        """See `Host.compute_in`."""
        self.unet.to(dtype)

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """See `Host.predict`."""
        frames = x.shape[0] // timesteps.shape[0]
        alphas = self.alphas_cumprod[timesteps.cpu()] if self.v_prediction else None
        timesteps = timesteps.to(x.device).repeat_interleave(frames)
        text = text.to(self.dtype).repeat_interleave(frames, dim=0)
        added = None
        if self._text_width is not None:
            text, pooled = split_pooled(text, self._text_width)
            added = {"text_embeds": pooled, "time_ids": _sizes(x)}
        predicted = self.unet(
            x.to(self.dtype),
            timesteps,
            encoder_hidden_states=text,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        return predicted if alphas is None else noise_from_v(predicted, x, alphas)


def _sizes(x: Tensor) -> Tensor:
    """SD-XL's size conditioning: size, no cropping, target size; the same as ComfyUI."""
    height, width = (side * LATENT_STRIDE for side in x.shape[-2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], device=x.device)
    return sizes.float().expand(x.shape[0], -1)


def shadow_host(unet: nn.Module) -> DiffusersHost:
    """The host of a UNet on `meta`, see `lamp.training.memory`."""
    return DiffusersHost(unet)


def build_host(
    config: dict[str, Any], state: dict[str, Tensor], *, v_prediction: bool = False
) -> DiffusersHost:
    """The frozen UNet of a diffusers config with the weights `state` (canonical names).

    diffusers reads `attention_head_dim` of SD 1.x configs as the NUMBER of heads.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(state)
    return DiffusersHost(unet.requires_grad_(False).eval(), v_prediction)
