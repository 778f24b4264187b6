"""Encode training clips and prompts with ComfyUI's VAE and CLIP, and check that they match."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...clips.clip_set import ClipSet
from ...errors import IncompatibleModelError, LampError
from ...method.architecture import describe_family, pooled_width, text_width, unet_family
from ...method.prompts import join_pooled
from ...training.latents import LatentClips, cache_latents
from .cache import latent_cache
from .vae import check_image_vae, check_latent_family, check_stride, name_family

# Share of the device's memory that the frames in the VAE may take.
_VAE_SHARE = 0.25


def prepare_clips(
    patcher: Any,
    vae: Any,
    clip: Any,
    clips: ClipSet,
    on_clip: Callable[[int, int], None],
    say: Callable[[str], None],
) -> LatentClips:
    """Encode clips and prompts, then unload all models, because the UNet needs the memory.

    Encodings of earlier runs come from the cache. VAE and CLIP are loaded only for what is missing.

    Args:
        patcher: the MODEL to train on.
        on_clip: called with (clips done, number of clips).
        say: called with a progress message for each clip.

    Raises:
        IncompatibleModelError: VAE or CLIP belong to another family than the MODEL.
    """
    import comfy.model_management as management

    unet = patcher.model.diffusion_model
    family, pooled = unet_family(unet), pooled_width(unet) > 0
    check_vae(vae, family)
    _check_clip(clip, family)

    def tell(done: int, total: int, cached: bool) -> None:
        say(f"clip {done} of {total} {'found in the cache' if cached else 'encoded'}")
        on_clip(done, total)

    with torch.no_grad():
        latents = cache_latents(
            clips,
            lambda frames: encode_posterior(vae, frames),
            lambda prompts: encode_prompts(clip, prompts, pooled),
            tell,
            latent_cache(vae, clip, pooled),
            patcher.model.latent_format.scale_factor,
        )
    _check_text(latents, unet)
    first = next(clips.chunks(0, count=1)).float() / 255
    check_latent_family(latents.posteriors[0].mean[:1], first, family)
    management.unload_all_models()
    management.soft_empty_cache()
    return latents


def encode_posterior(vae: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's posterior, not yet scaled for the UNet.

    Args:
        frames: `f h w c` in 0..1.

    Returns:
        two tensors `f 4 h/8 w/8`.

    Raises:
        IncompatibleModelError: the VAE is not the VAE of an image model.
    """
    import comfy.model_management as management

    check_vae(vae)
    pixels = vae.vae_encode_crop_pixels(frames).movedim(-1, 1)
    count = _frames_at_once(vae, pixels)
    each = vae.memory_used_encode((1, *pixels.shape[1:]), vae.vae_dtype)
    management.load_models_gpu([vae.patcher], memory_required=each * count)
    moments: Tensor | None = None
    try:
        moments = _moments(vae, pixels, count)
    except management.OOM_EXCEPTION:
        if count == 1:
            raise
    if moments is None:  # outside the handler, where the error no longer references the tensors
        management.soft_empty_cache()
        moments = _moments(vae, pixels, 1)
    mean, log_variance = moments.chunk(2, dim=1)
    check_stride(vae, mean, frames)
    return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))


def _frames_at_once(vae: Any, pixels: Tensor) -> int:
    """Number of frames `f c h w` per call of the VAE.

    It depends on the device's total memory, not on free memory: another batch size may round the
    last bit differently, and the same clips should give the same latents.
    """
    import comfy.model_management as management

    if vae.device.type == "cpu":
        return 1  # larger batches are not faster
    each = vae.memory_used_encode((1, *pixels.shape[1:]), vae.vae_dtype)
    share = management.get_total_memory(vae.device) * _VAE_SHARE
    return min(max(1, int(share / each)), len(pixels))


def _moments(vae: Any, pixels: Tensor, count: int) -> Tensor:
    """Mean and log variance `f 8 h/8 w/8`, computed for `count` frames `f c h w` at a time."""
    import comfy.model_management as management

    model, moments = vae.first_stage_model, []
    for frames in pixels.split(count):
        management.throw_exception_if_processing_interrupted()
        prepared = vae.process_input(frames).to(vae.vae_dtype).to(vae.device)
        moments.append(model.quant_conv(model.encoder(prepared)).float().cpu())
    return torch.cat(moments)


def check_vae(vae: Any, family: str = "sd1") -> None:
    """Check that a VAE belongs to an image model, with 4 latent channels and a posterior.

    Raises:
        IncompatibleModelError: it does not, such as a Flux, SD 3 or video VAE.
    """
    check_image_vae(vae, family)
    if not hasattr(vae.first_stage_model, "quant_conv"):
        raise IncompatibleModelError(
            "The connected VAE is a small preview VAE (TAESD) without a posterior: training needs "
            f"the full {name_family(family)} VAE."
        )


def encode_prompts(clip: Any, prompts: list[str], pooled: bool = False) -> dict[str, Tensor]:
    """One embedding `1 n d` per distinct prompt.

    Args:
        pooled: append the pooled embedding that SD-XL needs, `1 n d+p` (`lamp.method.prompts`).

    Raises:
        LampError: the checkpoint has no text encoder.
        IncompatibleModelError: the text encoder returns no pooled embedding.
    """
    _check_clip(clip)
    embeddings = {}
    for prompt in dict.fromkeys(prompts):
        ((text, about),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[:1]
        if pooled:
            text = join_pooled(text, _pooled(about).to(text.device))
        embeddings[prompt] = text.detach().float().cpu().clone()
    return embeddings


def _pooled(about: dict[str, Any]) -> Tensor:
    pooled: Tensor | None = about.get("pooled_output")
    if pooled is None:
        raise IncompatibleModelError(
            "The connected CLIP returns no pooled embedding, which the SD-XL MODEL needs: connect "
            "the CLIP of the same SD-XL checkpoint."
        )
    return pooled


def _check_clip(clip: Any, family: str = "sd1") -> None:
    if clip is None:
        raise LampError(
            "The checkpoint has no text encoder (CLIP): use a full "
            f"{name_family(family)} checkpoint or Load CLIP."
        )
    if clip.apply_hooks_to_conds is not None or clip.patcher.forced_hooks is not None:
        raise LampError(
            "The connected CLIP has hooks (Set CLIP Hooks). They change models while they sample, "
            "and have no effect on training: connect the CLIP without hooks. A LoRA that the "
            "training should include goes on MODEL and CLIP with Load LoRA."
        )


def _check_text(latents: LatentClips, unet: nn.Module) -> None:
    """Recognise the text encoder of another family by the width of its embeddings."""
    text, pooled = text_width(unet), pooled_width(unet)
    found = next(iter(latents.text.values())).shape[-1]
    if found != text + pooled:
        wanted = f"{text} numbers per token" + (f" and {pooled} per prompt" if pooled else "")
        raise IncompatibleModelError(
            f"The connected CLIP does not match the MODEL, which is "
            f"{describe_family(unet_family(unet))} and needs {wanted}; the CLIP gives {found} in "
            "all. Connect the CLIP of the same checkpoint."
        )
