"""The UNet of a MODEL as training needs it: plain weights, all of them on the device at once.

A host may hold weights in another type than the model's own, stream them layer by layer through
buffers that it uses again (`--lowvram`, `--novram`, Dynamic VRAM), or take them off the device
while other models need room. None of that goes with a backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import LampError
from ...training.memory.estimate import gigabytes
from ...training.twins import twin

# What the host's memory management leaves on layers and models: how a weight is to be fetched, and
# how much of the model is loaded.
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
    """A MODEL of its own with the patched weights of another one, all on the device.

    The host's memory manager does not know it: nothing is taken off the device while it lives, and
    the given MODEL, which gives its place up, is never changed. Weights that are on the right
    device in the right type are shared with it.

    Raises:
        LampError: a weight cannot be had as a plain tensor, or the device has no room.
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
            f"The MODEL's weights take {gigabytes(plain.model_size())} and {gigabytes(free)} are "
            f"free on {patcher.load_device}: training needs all of them there at once. Close other "
            "programs that use the device, or train on one with more memory."
        ) from None
    return plain


class _Plain:
    """Gives each weight without patches, as a tensor that autograd can work with and in the type
    that the model is to have (newer hosts keep that of the file)."""

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
        # The same memory as a normal tensor: what is read only needs no copy.
        shared = torch.empty(0, dtype=kind, device=value.device)
        return shared.set_(
            value.untyped_storage(), value.storage_offset(), value.shape, value.stride()
        )


def _check_plain(weight: Tensor, owner: nn.Module) -> None:
    plain = type(weight) in (Tensor, nn.Parameter)
    if not plain or weight.is_meta or not weight.is_floating_point():
        kind = str(weight.dtype) if plain else type(weight).__name__
        raise LampError(
            f"The MODEL's weights are packed ({kind} in its layers of type "
            f"{type(owner).__qualname__}), as in GGUF files, and cannot be trained on: connect the "
            "MODEL of the same checkpoint as .safetensors in fp16, bf16, fp32 or fp8."
        )


def _is_left_by_loading(name: str) -> bool:
    return name in _LEFT_BY_NAME or name.startswith(_LEFT_BY_LOADING)
