"""diffusers' UNet2DConditionModel as host: headless tuning, and the second witness."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..schedule import scaled_linear_alphas


class DiffusersHost:
    """Runs a `UNet2DConditionModel` on batches of frames `(b f) c h w`."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet
        self.alphas_cumprod = scaled_linear_alphas()

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """See `Host.predict`."""
        frames = x.shape[0] // timesteps.shape[0]
        timesteps = timesteps.to(x.device).repeat_interleave(frames)
        context = text.repeat_interleave(frames, dim=0)
        noise = self.unet(x, timesteps, encoder_hidden_states=context, return_dict=False)[0]
        return noise.float()


def build_host(config: dict[str, Any], state: dict[str, Tensor]) -> DiffusersHost:
    """The UNet of a diffusers config with `state` (canonical names) as its weights, frozen.

    `attention_head_dim` of SD 1.x configs is the NUMBER of heads, as diffusers reads it.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(state)
    return DiffusersHost(unet.requires_grad_(False).eval())
