"""Tuning on ComfyUI's own UNet: made ready for gradients, and run as `Host` asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..architecture import map_unet, pooled_width, text_width
from ..errors import IncompatibleModelError, LampError
from ..images import LATENT_STRIDE
from ..motion import Motion
from ..pooled import split_pooled
from ..schedule import TRAIN_TIMESTEPS, noise_of_velocity
from .comfy import KEY


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
