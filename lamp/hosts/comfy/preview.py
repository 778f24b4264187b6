"""Pictures of latents on the way: while a video is sampled, and while the UNet is being tuned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SPARE = 1.1  # of a model's size, as the host reckons


def show_middle_frame(patcher: Any, steps: int) -> Callable[[int, Tensor, Tensor, int], None]:
    """A callback for a sampler of the host, with progress and previews.

    The host's own previews show the first image of a batch, which never moves here, so they get
    another one. Those of other packs get the whole video: they play it.
    """
    import comfy.utils
    import latent_preview

    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    plain = type(previewer).__module__ == latent_preview.__name__
    bar = comfy.utils.ProgressBar(max(steps, 0))

    def show(step: int, denoised: Tensor, _: Tensor, total: int) -> None:
        picture = None
        if previewer is not None:
            shown = denoised[len(denoised) // 2 :] if plain else denoised
            picture = previewer.decode_latent_to_preview_image("JPEG", shown)
        bar.update_absolute(step + 1, total, picture)

    return show


@torch.no_grad()
def decode_for_preview(patcher: Any, vae: Any, latents: Tensor) -> Tensor:
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
    on_cpu = management.is_device_cpu(device)
    if not on_cpu and management.get_free_memory(device) < _asked_for(vae, plain[:1].shape):
        return latents_to_rgb(latents, latent_format)
    try:
        pictures = torch.cat([vae.decode(frame).cpu() for frame in plain.split(1)])
    finally:
        if not on_cpu:
            # The UNet of the run is none of the host's, see `resident_patcher`.
            management.free_memory(float("inf"), device)
            management.soft_empty_cache()
    return pictures[..., :3].float().clamp(0.0, 1.0)


def _asked_for(vae: Any, shape: torch.Size) -> float:
    """Bytes that the host wants free on the device before it decodes a latent of that shape."""
    import comfy.model_management as management

    decoding = vae.memory_used_decode(shape, vae.vae_dtype) + management.extra_reserved_memory()
    least = management.minimum_inference_memory()
    return float(_SPARE * vae.patcher.model_size() + max(least, decoding))


def latents_to_rgb(latents: Tensor, latent_format: Any) -> Tensor:
    """The host's map from latent channels to colours, `f c h w` -> `f h w 3` in 0..1."""
    factors = torch.tensor(latent_format.latent_rgb_factors, device=latents.device)
    colours = latents.float().movedim(1, -1) @ factors
    bias = latent_format.latent_rgb_factors_bias
    if bias is not None:
        colours = colours + torch.tensor(bias, device=latents.device)
    return ((colours + 1) / 2).clamp(0.0, 1.0).cpu()
