"""Train on ComfyUI's UNet: prepare it for gradients, and run it as a `Host`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...clips.images import LATENT_STRIDE
from ...errors import IncompatibleModelError, LampError
from ...method.architecture import map_unet, pooled_width, text_width
from ...method.attention import torch_attention
from ...method.motion import Motion
from ...method.prompts import split_pooled
from ...method.schedule import TRAIN_TIMESTEPS, noise_from_v
from .binding import KEY
from .weights import check_plain_weights, resident_patcher


class ComfyHost:
    """Runs the UNet of a MODEL on batches of frames `(b f) c h w`, in DDPM scale."""

    def __init__(self, patcher: Any) -> None:
        import comfy.model_management as management

        self.unet, self._model = patcher.model.diffusion_model, patcher.model
        self.v_prediction = predicts_v(patcher)
        self.dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
        self.device = patcher.load_device
        self.has_bf16 = bool(management.should_use_bf16(self.device))
        # On the CPU, as in diffusers: Apple's GPUs have no float64.
        sigmas = patcher.get_model_object("model_sampling").sigmas.cpu()
        self.alphas_cumprod = (1 / (1 + sigmas.double() ** 2)).float()
        self._text_width = text_width(self.unet) if pooled_width(self.unet) else None

    def compute_in(self, dtype: torch.dtype) -> None:
        """See `Host.compute_in`."""
        if self._model.manual_cast_dtype is None:
            self.unet.to(dtype)
        self.dtype = dtype

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
            transformer_options={
                "cond_or_uncond": [0] * videos,
                "optimized_attention_override": torch_attention,
            },
        ).float()
        if not self.v_prediction:
            return predicted
        return noise_from_v(predicted, x, self.alphas_cumprod[timesteps.cpu()])

    def _conditions(self, text: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The text `b n d` and, for SD-XL, ComfyUI's vector `(b f) v` of the pooled embedding
        and the size of the picture."""
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
    """A MODEL's UNet, ready for gradients and with frozen weights; see `resident_patcher`.

    ComfyUI runs nodes in inference mode, which has no gradients; the block runs outside of it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield ComfyHost(resident_patcher(patcher))


def new_motion(host: ComfyHost, seed: int) -> Motion:
    """A new motion for the host's UNet, in fp32 on its device."""
    return Motion(map_unet(host.unet), device=host.device).initialise(seed)


def check_trainable(patcher: Any) -> None:
    """Check that a motion can be trained on a MODEL.

    Raises:
        LampError: it has a motion already, or its device has no backward pass.
        IncompatibleModelError: it is not a Stable Diffusion UNet of text and noise alone, or
            predicts something unusual.
    """
    if patcher.get_attachment(KEY) is not None:
        raise LampError(
            "This MODEL already has a LAMP motion: connect the MODEL of the checkpoint itself."
        )
    if patcher.load_device.type == "privateuseone":
        raise LampError(
            "DirectML has no backward pass for the layers of a UNet, so it cannot train: start "
            "ComfyUI with --cpu, or use PyTorch for ROCm, CUDA or XPU."
        )
    unet = patcher.model.diffusion_model
    channels = unet.get_submodule(map_unet(unet).convs[0].module).in_channels
    if channels != patcher.model.latent_format.latent_channels:
        raise IncompatibleModelError(
            f"This MODEL takes {channels} channels, so it is for inpainting or editing: connect a "
            "checkpoint that generates images from text. Its motions work with both."
        )
    check_plain_weights(unet)
    predicts_v(patcher)


def ignored_patches(patcher: Any) -> list[str]:
    """Names of patches on a MODEL that have no effect in training, which calls the UNet directly.
    LoRAs have one, because they are in the weights."""
    options = patcher.model_options
    inside = options.get("transformer_options", {})
    found = [f"{name}" for name in options if name != "transformer_options" and options[name]]
    for kind in ("patches", "patches_replace"):
        for name, patches in inside.get(kind, {}).items():
            listed = patches.values() if isinstance(patches, dict) else patches
            found += [f"{name} ({origin})" for origin in dict.fromkeys(map(_origin, listed))]
    for wrappers in (patcher.wrappers, inside.get("wrappers", {})):
        for kind, keyed in wrappers.items():
            found += [f"{kind} ({key or 'no name'})" for key, each in keyed.items() if each]
    found += [f"injection ({key})" for key, each in patcher.injections.items() if each]
    return list(dict.fromkeys(found))


def _origin(patch: Any) -> str:
    """The module of a patch, such as `nodes_freelunch`."""
    return str(getattr(patch, "__module__", type(patch).__module__)).rsplit(".", 1)[-1]


def predicts_v(patcher: Any) -> bool:
    """Whether a MODEL predicts v (SD 2.x at 768 pixels) rather than the noise.

    Raises:
        IncompatibleModelError: it predicts neither, or does not have 1000 timesteps.
    """
    from comfy.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete

    sampling = patcher.get_model_object("model_sampling")
    # Subclasses of these two predict something else.
    denoise = type(sampling).calculate_denoised
    v_prediction = denoise is V_PREDICTION.calculate_denoised
    usual = isinstance(sampling, ModelSamplingDiscrete) and len(sampling.sigmas) == TRAIN_TIMESTEPS
    if not usual or not (v_prediction or denoise is EPS.calculate_denoised):
        kinds = " with ".join(kind.__name__ for kind in type(sampling).__bases__)
        raise IncompatibleModelError(
            f"The sampling of this MODEL is {kinds}. Training needs a model that predicts noise or "
            f"v at {TRAIN_TIMESTEPS} timesteps: connect the checkpoint's own MODEL without "
            "ModelSampling nodes. LCM and EDM models cannot be trained on."
        )
    return v_prediction
