"""Pictures of latents while the UNet is being tuned and must stay where it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SPARE = 1.5  # of the memory that the decoder is said to need


@torch.no_grad()
def decode_beside(patcher: Any, vae: Any, latents: Tensor) -> Tensor:
    """Decode a video's latents without moving the UNet of `patcher` off its device.

    With the VAE where its memory is to be had, and otherwise by the rough colours that the host
    shows as a preview.

    Args:
        latents: `f c h w`, scaled.

    Returns:
        `f h w 3` in 0..1, on the CPU.
    """
    import comfy.model_management as management

    latent_format = patcher.model.latent_format
    plain = latent_format.process_out(latents.float())
    device = patcher.load_device
    if not management.is_device_cpu(device):
        need = vae.memory_used_decode(plain[:1].shape, vae.vae_dtype) + vae.patcher.model_size()
        if management.get_free_memory(device) < _SPARE * need:
            return rough_colours(latents, latent_format)
    pictures = torch.cat([vae.decode(frame).cpu() for frame in plain.split(1)])
    if not management.is_device_cpu(device):
        kept = [m for m in management.current_loaded_models if m.model is patcher]
        management.free_memory(float("inf"), device, keep_loaded=kept)
        management.soft_empty_cache()
    return pictures[..., :3].float().clamp(0.0, 1.0)


def rough_colours(latents: Tensor, latent_format: Any) -> Tensor:
    """The host's map from latent channels to colours, `f c h w` -> `f h w 3` in 0..1."""
    factors = torch.tensor(latent_format.latent_rgb_factors, device=latents.device)
    colours = latents.float().movedim(1, -1) @ factors
    bias = latent_format.latent_rgb_factors_bias
    if bias is not None:
        colours = colours + torch.tensor(bias, device=latents.device)
    return ((colours + 1) / 2).clamp(0.0, 1.0).cpu()
