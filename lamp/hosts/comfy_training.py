"""Tuning on ComfyUI's own models: the UNet made ready for gradients, VAE posterior, prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture import map_unet
from ..clips import ClipSet
from ..errors import IncompatibleModelError, LampError
from ..latents import LatentClips, cache_latents
from ..motion import Motion
from .comfy import KEY
from .comfy_cache import latent_cache
from .comfy_vae import check_image_vae

# Part of the device's memory that the frames under way in the VAE may take.
_VAE_SHARE = 0.25


class ComfyHost:
    """Runs the UNet of a MODEL on batches of frames `(b f) c h w`, in DDPM scale."""

    def __init__(self, patcher: Any) -> None:
        self.unet = patcher.model.diffusion_model
        self.dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
        self.device = patcher.load_device
        sigmas = patcher.get_model_object("model_sampling").sigmas
        self.alphas_cumprod = (1 / (1 + sigmas.double() ** 2)).float()

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """See `Host.predict`."""
        videos = timesteps.shape[0]
        frames = x.shape[0] // videos
        noise = self.unet(
            x.to(self.dtype),
            timesteps.to(x.device).repeat_interleave(frames).float(),
            context=text.to(x.device, self.dtype).repeat_interleave(frames, dim=0),
            transformer_options={"cond_or_uncond": [0] * videos},
        )
        return noise.float()


@contextmanager
def tuning_host(patcher: Any) -> Iterator[ComfyHost]:
    """A MODEL loaded and ready to carry gradients, its own weights frozen.

    The executor runs nodes in inference mode, in which no gradient exists: the block runs outside
    of it, and the weights that were loaded inside of it are cloned once into normal tensors.
    """
    import comfy.model_management as management

    with torch.inference_mode(False), torch.enable_grad():
        management.load_models_gpu([patcher], force_full_load=True)
        _leave_inference_mode(patcher.model.diffusion_model)
        _leave_inference_mode(patcher.model.model_sampling)
        yield ComfyHost(patcher)


def new_motion(host: ComfyHost, seed: int) -> Motion:
    """A fresh motion for the host's UNet: fp32 masters on its device."""
    return Motion(map_unet(host.unet), device=host.device).initialise(seed)


def choose_precision(host: ComfyHost, wanted: str) -> str:
    """`auto` is fp32 where the UNet is, else bf16 if the device has it, else fp16.

    Raises:
        LampError: fp32 is wanted, but the UNet was loaded in half precision.
    """
    import comfy.model_management as management

    full = host.dtype == torch.float32
    if wanted == "auto":
        if full:
            return "fp32"
        return "bf16" if management.should_use_bf16(host.device) else "fp16"
    if wanted == "fp32" and not full:
        raise LampError(
            f"precision is fp32, but ComfyUI loaded the MODEL in {host.dtype}: choose auto, bf16 "
            "or fp16, or start ComfyUI with --force-fp32."
        )
    return wanted


def prepare_clips(
    vae: Any,
    clip: Any,
    clips: ClipSet,
    on_clip: Callable[[int, int], None],
    say: Callable[[str], None],
) -> LatentClips:
    """Encode clips and prompts, then take all models off the device: the UNet needs the room.

    What an earlier run encoded comes from the disk. VAE and CLIP are put on the device only when
    something is missing there.

    Args:
        on_clip: called with (clips done, clips in all).
        say: called with a line of text for each clip, which tells whether it was encoded.
    """
    import comfy.model_management as management

    check_vae(vae)
    _check_clip(clip)

    def tell(done: int, total: int, cached: bool) -> None:
        say(f"clip {done} of {total} {'found in the cache' if cached else 'encoded'}")
        on_clip(done, total)

    with torch.no_grad():
        latents = cache_latents(
            clips,
            lambda frames: encode_posterior(vae, frames),
            lambda prompts: encode_prompts(clip, prompts),
            tell,
            latent_cache(vae, clip),
        )
    management.unload_all_models()
    management.soft_empty_cache()
    return latents


def check_untouched(patcher: Any) -> None:
    """Raises LampError if the MODEL carries a motion already."""
    if patcher.get_attachment(KEY) is not None:
        raise LampError(
            "This MODEL already carries a LAMP motion: connect the MODEL of the checkpoint itself."
        )
    map_unet(patcher.model.diffusion_model)


def base_hash(unet: nn.Module) -> str:
    """A fingerprint of the image model: of its self-attention queries, to which a motion holds
    the deltas. The same for ComfyUI and diffusers, and for fp16 and fp32 copies."""
    digest = hashlib.sha256()
    modules = dict(unet.named_modules())
    for site in map_unet(unet).blocks:
        weight = modules[f"{site.module}.attn1.to_q"].weight.detach()
        digest.update(weight.to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _leave_inference_mode(root: nn.Module) -> None:
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                value = parameter.detach()
                value = value.clone() if value.is_inference() else value
                module._parameters[name] = nn.Parameter(value, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def encode_posterior(vae: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the VAE's posterior, in the model's latent scale's units / 0.18215.

    Args:
        frames: `f h w c` in 0..1.

    Returns:
        two tensors `f 4 h/8 w/8`, not yet scaled by 0.18215.

    Raises:
        IncompatibleModelError: the VAE is no SD 1.x VAE.
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
    if moments is None:  # out here, where the error no longer holds on to the tensors
        management.soft_empty_cache()
        moments = _moments(vae, pixels, 1)
    mean, log_variance = moments.chunk(2, dim=1)
    return mean, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))


def _frames_at_once(vae: Any, pixels: Tensor) -> int:
    """How many frames `f c h w` the VAE takes at a time.

    Chosen by the device's whole memory and not by what is free at the moment: another number may
    round differently in the last bit, and the same clips shall give the same latents.
    """
    import comfy.model_management as management

    if vae.device.type == "cpu":
        return 1  # nothing is gained there
    each = vae.memory_used_encode((1, *pixels.shape[1:]), vae.vae_dtype)
    share = management.get_total_memory(vae.device) * _VAE_SHARE
    return min(max(1, int(share / each)), len(pixels))


def _moments(vae: Any, pixels: Tensor, count: int) -> Tensor:
    """Mean and log variance `f 8 h/8 w/8`, of `count` frames `f c h w` at a time."""
    import comfy.model_management as management

    model, moments = vae.first_stage_model, []
    for frames in pixels.split(count):
        management.throw_exception_if_processing_interrupted()
        prepared = vae.process_input(frames).to(vae.vae_dtype).to(vae.device)
        moments.append(model.quant_conv(model.encoder(prepared)).float().cpu())
    return torch.cat(moments)


def check_vae(vae: Any) -> None:
    """See that a VAE is one of the SD 1.x kind, with 4 latent channels and a posterior.

    Raises:
        IncompatibleModelError: it is not; the commonest is an SD-XL or a video VAE.
    """
    check_image_vae(vae)
    if not hasattr(vae.first_stage_model, "quant_conv"):
        raise IncompatibleModelError(
            "The connected VAE is a small preview VAE (TAESD) without a posterior: training needs "
            "the full SD 1.x VAE."
        )


def encode_prompts(clip: Any, prompts: list[str]) -> dict[str, Tensor]:
    """One embedding `1 n d` for each different prompt.

    Raises:
        LampError: the checkpoint has no text encoder.
    """
    _check_clip(clip)
    embeddings = {}
    for prompt in dict.fromkeys(prompts):
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        embeddings[prompt] = conditioning[0][0].detach().float().cpu().clone()
    return embeddings


def _check_clip(clip: Any) -> None:
    if clip is None:
        raise LampError(
            "The checkpoint has no text encoder (CLIP): use a full SD 1.x checkpoint or Load CLIP."
        )
