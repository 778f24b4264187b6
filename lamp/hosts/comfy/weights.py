"""The UNet of a MODEL for training: plain weights that all stay on the device.

ComfyUI may keep weights in another dtype than the model's, stream them layer by layer through
reused buffers (`--lowvram`, `--novram`, Dynamic VRAM), or unload them while other models need
memory. A backward pass allows none of this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LampError
from ...training.memory.estimate import gigabytes
from ...training.twins import twin

# Attributes that ComfyUI's memory management leaves on layers and models: how to fetch a weight,
# and how much of the model is loaded.
_LEFT_BY_LOADING = ("_v", "_pin", "_prefetch", "comfy_", "prev_comfy_", "dynamic_", "model_loaded_")
_LEFT_BY_NAME = {
    "weight_function",
    "bias_function",
    "weight_lowvram_function",
    "bias_lowvram_function",
    "seed_key",
    "lowvram_patch_counter",
    "model_lowvram",
    "model_offload_buffer_memory",
    "current_weight_patches_uuid",
}


def resident_patcher(patcher: Any) -> Any:
    """A new MODEL with the patched weights of another one, all on the device.

    ComfyUI's memory manager does not know it, so nothing is unloaded while it exists. The given
    MODEL is unloaded, but never changed. Weights with the right device and dtype are shared.

    Raises:
        LampError: a weight is not available as a plain tensor, or the device lacks memory.
    """
    import comfy.model_management as management
    import comfy.model_patcher

    management.free_memory(1e30, patcher.load_device)
    model = twin(patcher.model, _Plain(patcher), _is_left_by_loading)
    plain = comfy.model_patcher.ModelPatcher(model, patcher.load_device, patcher.offload_device)
    plain.patches = {key: list(patches) for key, patches in patcher.patches.items()}
    plain.object_patches = dict(patcher.object_patches)
    plain.weight_wrapper_patches = dict(patcher.weight_wrapper_patches)
    plain.force_cast_weights = patcher.force_cast_weights
    free = management.get_free_memory(patcher.load_device)
    try:
        with torch.no_grad():
            plain.patch_model(patcher.load_device)
    except management.OOM_EXCEPTION:
        raise LampError(
            f"The MODEL's weights take {gigabytes(plain.model_size())}, but {gigabytes(free)} are "
            f"free on {patcher.load_device}, and training needs all of them there. Close other "
            "programs that use the device, or train on one with more memory."
        ) from None
    return plain


class _Plain:
    """Returns each weight without patches, as a tensor that works with autograd, in the model's
    dtype (newer versions of ComfyUI keep that of the file)."""

    def __init__(self, patcher: Any) -> None:
        weights = dict(patcher.model.named_parameters())
        self._own = {
            id(weights[name]): backup.weight
            for name, backup in patcher.backup.items()
            if name in weights
        }

    def __call__(self, tensor: Tensor, owner: nn.Module, name: str) -> Tensor:
        value = self._own.get(id(tensor), tensor)
        if isinstance(tensor, nn.Parameter):
            _check_plain(value, owner)
        kind = getattr(owner, f"{name}_comfy_model_dtype", None) or value.dtype
        value = value.detach()
        if value.dtype != kind:
            return value.to(kind)
        if not value.is_inference():
            return value
        # A normal tensor on the same memory: frozen weights need no copy.
        shared = torch.empty(0, dtype=kind, device=value.device)
        return shared.set_(
            value.untyped_storage(), value.storage_offset(), value.shape, value.stride()
        )


def check_plain_weights(unet: nn.Module) -> None:
    """Refuse packed weights before anything is computed with them.

    Raises:
        LampError: there are some.
    """
    for owner in unet.modules():
        for weight in owner.parameters(recurse=False):
            if type(weight) not in (Tensor, nn.Parameter):
                _check_plain(weight, owner)


def _check_plain(weight: Tensor, owner: nn.Module) -> None:
    plain = type(weight) in (Tensor, nn.Parameter)
    if not plain or weight.is_meta or not weight.is_floating_point():
        kind = str(weight.dtype) if plain else type(weight).__name__
        raise LampError(
            f"The MODEL's weights are packed ({kind} in layers of type "
            f"{type(owner).__qualname__}), as in GGUF files, and cannot be used for training: "
            "connect the MODEL of the same checkpoint as .safetensors in fp16, bf16, fp32 or fp8."
        )


def _is_left_by_loading(name: str) -> bool:
    return name in _LEFT_BY_NAME or name.startswith(_LEFT_BY_LOADING)
