"""Tuning on ComfyUI's own models: the UNet made ready for gradients, VAE posterior, prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture import (
    describe_family,
    map_unet,
    pooled_width,
    text_width,
    unet_family,
)
from ..clips import ClipSet
from ..errors import IncompatibleModelError, LampError
from ..images import LATENT_STRIDE
from ..latents import LatentClips, cache_latents
from ..motion import Motion
from ..pooled import join_pooled, split_pooled
from ..schedule import TRAIN_TIMESTEPS, noise_of_velocity
from .comfy import KEY
from .comfy_cache import latent_cache
from .comfy_vae import check_image_vae, check_latent_family, name_family

# Part of the device's memory that the frames under way in the VAE may take.
_VAE_SHARE = 0.25


class ComfyHost:
    """Runs the UNet of a MODEL on batches of frames `(b f) c h w`, in DDPM scale."""

    def __init__(self, patcher: Any) -> None:
        self.unet, self._model = patcher.model.diffusion_model, patcher.model
        self.velocity = predicts_velocity(patcher)
        self.dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
        self.device = patcher.load_device
        # On the CPU, as in diffusers: Apple's GPUs have no float64.
        sigmas = patcher.get_model_object("model_sampling").sigmas.cpu()
        self.alphas_cumprod = (1 / (1 + sigmas.double() ** 2)).float()
        self._text_width = text_width(self.unet) if pooled_width(self.unet) else None

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """See `Host.predict`."""
        videos = timesteps.shape[0]
        frames = x.shape[0] // videos
        text, vector = self._conditions(text, x)
        predicted = self.unet(
            x.to(self.dtype),
            timesteps.to(x.device).repeat_interleave(frames).float(),
            context=text.to(x.device, self.dtype).repeat_interleave(frames, dim=0),
            y=vector,
            transformer_options={"cond_or_uncond": [0] * videos},
        ).float()
        if not self.velocity:
            return predicted
        return noise_of_velocity(predicted, x, self.alphas_cumprod[timesteps.cpu()])

    def _conditions(self, text: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The text `b n d` and, for SD-XL, the vector `(b f) v` of its pooled embedding and the
        picture's size, which the host makes itself as it does when it samples."""
        if self._text_width is None:
            return text, None
        text, pooled = split_pooled(text, self._text_width)
        height, width = (side * LATENT_STRIDE for side in x.shape[-2:])
        vector = self._model.encode_adm(
            device=x.device, pooled_output=pooled, height=height, width=width
        )
        frames = x.shape[0] // text.shape[0]
        return text, vector.to(x.device, self.dtype).repeat_interleave(frames, dim=0)


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
    patcher: Any,
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
        patcher: the MODEL that they are for.
        on_clip: called with (clips done, clips in all).
        say: called with a line of text for each clip, which tells whether it was encoded.

    Raises:
        IncompatibleModelError: VAE or CLIP are of another family than the MODEL.
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


def check_untouched(patcher: Any) -> None:
    """See that a motion can be trained on a MODEL.

    Raises:
        LampError: it carries a motion already.
        IncompatibleModelError: it is no Stable Diffusion UNet, or predicts something unusual.
    """
    if patcher.get_attachment(KEY) is not None:
        raise LampError(
            "This MODEL already carries a LAMP motion: connect the MODEL of the checkpoint itself."
        )
    map_unet(patcher.model.diffusion_model)
    predicts_velocity(patcher)


def predicts_velocity(patcher: Any) -> bool:
    """Whether a MODEL predicts velocity (SD 2.x at 768 pixels), and not noise.

    Raises:
        IncompatibleModelError: it predicts neither, or not at the 1000 timesteps of training.
    """
    from comfy.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete

    sampling = patcher.get_model_object("model_sampling")
    # Other kinds inherit from these two and predict something else.
    denoise = type(sampling).calculate_denoised
    velocity = denoise is V_PREDICTION.calculate_denoised
    usual = isinstance(sampling, ModelSamplingDiscrete) and len(sampling.sigmas) == TRAIN_TIMESTEPS
    if not usual or not (velocity or denoise is EPS.calculate_denoised):
        kinds = " with ".join(kind.__name__ for kind in type(sampling).__bases__)
        raise IncompatibleModelError(
            f"The MODEL samples by {kinds}: a motion is trained on models that predict noise or "
            f"velocity at {TRAIN_TIMESTEPS} timesteps. Connect the checkpoint's own MODEL, without "
            "ModelSampling nodes; LCM and EDM models cannot be trained on."
        )
    return velocity


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
    """Mean and deviation of the VAE's posterior, not yet scaled for the UNet.

    Args:
        frames: `f h w c` in 0..1.

    Returns:
        two tensors `f 4 h/8 w/8`.

    Raises:
        IncompatibleModelError: the VAE is no image model's VAE.
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


def check_vae(vae: Any, family: str = "sd1") -> None:
    """See that a VAE is an image model's, with 4 latent channels and a posterior.

    Raises:
        IncompatibleModelError: it is not; the commonest is a Flux, SD 3 or video VAE.
    """
    check_image_vae(vae, family)
    if not hasattr(vae.first_stage_model, "quant_conv"):
        raise IncompatibleModelError(
            "The connected VAE is a small preview VAE (TAESD) without a posterior: training needs "
            f"the full {name_family(family)} VAE."
        )


def encode_prompts(clip: Any, prompts: list[str], pooled: bool = False) -> dict[str, Tensor]:
    """One embedding `1 n d` for each different prompt.

    Args:
        pooled: with the pooled embedding, `1 n d+p` (`lamp.pooled`), which SD-XL needs.

    Raises:
        LampError: the checkpoint has no text encoder.
        IncompatibleModelError: the text encoder gives no pooled embedding.
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
            "The connected CLIP gives no pooled embedding, which the SD-XL MODEL needs: connect "
            "the CLIP of the same SD-XL checkpoint."
        )
    return pooled


def _check_clip(clip: Any, family: str = "sd1") -> None:
    if clip is None:
        raise LampError(
            "The checkpoint has no text encoder (CLIP): use a full "
            f"{name_family(family)} checkpoint or Load CLIP."
        )


def _check_text(latents: LatentClips, unet: nn.Module) -> None:
    """The text encoder of another family is told by the width of what it makes."""
    text, pooled = text_width(unet), pooled_width(unet)
    found = next(iter(latents.text.values())).shape[-1]
    if found != text + pooled:
        wanted = f"{text} numbers a token" + (f" and {pooled} a prompt" if pooled else "")
        raise IncompatibleModelError(
            f"The connected CLIP does not fit the MODEL, which is "
            f"{describe_family(unet_family(unet))} and takes {wanted}, not {found} in all: "
            "connect the CLIP of the same checkpoint."
        )
