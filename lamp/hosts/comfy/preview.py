"""Previews of latents during sampling and training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SPARE = 1.1  # of a model's size, as ComfyUI estimates


def show_middle_frame(patcher: Any, steps: int) -> Callable[[int, Tensor, Tensor, int], None]:
    """A callback for a sampler of ComfyUI, with progress and previews.

    ComfyUI's previews show the first image of a batch, which never changes here, so they get the
    middle frame. Previewers of other packs play the whole video and get all of it.
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
    """Decode a video's latents while the UNet of `patcher` stays on its device.

    With the VAE if its memory is available, otherwise with ComfyUI's preview colours.

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
    if not on_cpu and management.get_free_memory(device) < _needed_to_decode(vae, plain[:1].shape):
        return latents_to_rgb(latents, latent_format)
    try:
        pictures = torch.cat([vae.decode(frame).cpu() for frame in plain.split(1)])
    finally:
        if not on_cpu:
            # ComfyUI does not manage the UNet of the run, see `resident_patcher`.
            management.free_memory(float("inf"), device)
            management.soft_empty_cache()
    return pictures[..., :3].float().clamp(0.0, 1.0)


def _needed_to_decode(vae: Any, shape: torch.Size) -> float:
    """Bytes that ComfyUI wants free on the device before it decodes a latent of this shape."""
    import comfy.model_management as management

    decoding = vae.memory_used_decode(shape, vae.vae_dtype) + management.extra_reserved_memory()
    least = management.minimum_inference_memory()
    return float(_SPARE * vae.patcher.model_size() + max(least, decoding))


def latents_to_rgb(latents: Tensor, latent_format: Any) -> Tensor:
    """ComfyUI's linear map from latent channels to colours, `f c h w` -> `f h w 3` in 0..1."""
    factors = torch.tensor(latent_format.latent_rgb_factors, device=latents.device)
    colours = latents.float().movedim(1, -1) @ factors
    bias = latent_format.latent_rgb_factors_bias
    if bias is not None:
        colours = colours + torch.tensor(bias, device=latents.device)
    return ((colours + 1) / 2).clamp(0.0, 1.0).cpu()
