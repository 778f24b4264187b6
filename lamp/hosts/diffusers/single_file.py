"""Stable Diffusion 1.x checkpoints in one .safetensors file, converted by diffusers, offline.

diffusers itself would fetch the configurations from the network; those of SD 1.x stand here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import IncompatibleModelError, LampError
from ...files.header import check_file
from ...toy.base import TEXT_CONFIG, load_text_weights

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {"cross_attention_dim": 768, "attention_head_dim": 8},  # 8 is the NUMBER of heads
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
    },
    "text_encoder": {
        **TEXT_CONFIG,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
}
"""The parts of a checkpoint: arguments of `UNet2DConditionModel`, `AutoencoderKL` (everything else
is their default) and `CLIPTextConfig`."""

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
_TEXT = "text_model."
# What libraries raise for files that are damaged.
_DAMAGED = (OSError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, MemoryError)
_OTHER_FAMILIES = {
    "conditioner.embedders.": ("SD-XL", ", or train in ComfyUI with LAMP Trainer"),
    "cond_stage_model.model.": ("SD 2.x", ", or the model as a diffusers folder"),
    "model.diffusion_model.double_blocks.": ("Flux", ""),
    "model.diffusion_model.joint_blocks.": ("SD 3", ""),
}


def load_single_file(path: Path, parts: Sequence[str] = tuple(CONFIGS)) -> dict[str, Any]:
    """The models of a checkpoint such as `v1-5-pruned-emaonly.safetensors`, in fp32.

    All names and shapes are checked before any weight is read.

    Args:
        parts: which of `CONFIGS`.

    Raises:
        LampError: the file cannot be read or is incomplete.
        IncompatibleModelError: it is not an SD 1.x checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise LampError(
            f"{path.name} is not a .safetensors file, and other formats can run code when they are "
            "opened: download the checkpoint as .safetensors."
        )
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.endswith("position_ids")]  # noqa: SIM118
            _check_family(path.name, names)
            own = {part: [n for n in names if n.startswith(_PREFIXES[part])] for part in parts}
            for part in parts:
                shapes = {name: file.get_slice(name).get_shape() for name in own[part]}
                empty = {name: torch.empty(s, device="meta") for name, s in shapes.items()}
                _check_tensors(path.name, part, empty)
            return {
                # Copies, so that the file does not stay mapped.
                part: _load(
                    part, {n: file.get_tensor(n).to(torch.float32, copy=True) for n in each}
                )
                for part, each in own.items()
            }
    except LampError:
        raise
    except (SafetensorError, *_DAMAGED) as error:
        raise LampError(
            f"{path.name} cannot be read as an SD 1.x checkpoint ({str(error)[:200]}): download it "
            "again."
        ) from error


def convert(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part under the names that diffusers and transformers give them."""
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_ldm_vae_checkpoint,
    )

    if part == "unet":
        return dict(convert_ldm_unet_checkpoint(dict(tensors), _build(part).config))
    if part == "vae":
        return dict(convert_ldm_vae_checkpoint(dict(tensors), _build(part).config))
    short = {name.removeprefix(_PREFIXES[part]): tensor for name, tensor in tensors.items()}
    # Some checkpoints leave out the level `text_model`.
    return {f"{_TEXT}{name.removeprefix(_TEXT)}": tensor for name, tensor in short.items()}


def _build(part: str, device: str = "meta") -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CONFIGS[part]
    with torch.device(device):
        if part == "unet":
            return UNet2DConditionModel(**config)
        if part == "vae":
            return AutoencoderKL(**config)
        return CLIPTextModel(CLIPTextConfig(**config))


def _load(part: str, tensors: dict[str, Tensor]) -> Any:
    state = convert(part, tensors)
    if part == "text_encoder":
        model = _build(part, "cpu")  # it has a buffer that no checkpoint holds
        load_text_weights(model, state)
    else:
        model = _build(part)
        model.load_state_dict(state, assign=True)
    return model


def _check_family(file: str, names: Sequence[str]) -> None:
    for prefix, (family, elsewhere) in _OTHER_FAMILIES.items():
        if any(name.startswith(prefix) for name in names):
            raise IncompatibleModelError(
                f"{file} is a checkpoint of {family}; of single files only SD 1.x can be read: "
                f"give an SD 1.x checkpoint{elsewhere}."
            )
    for part, prefix in _PREFIXES.items():
        if not any(name.startswith(prefix) for name in names):
            raise LampError(
                f"{file} has no {part} (no '{prefix}...'): give a full SD 1.x checkpoint, or a "
                "diffusers folder."
            )


def _check_tensors(file: str, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises unless a part has the tensors of SD 1.x: all of them, and no others."""
    state = _build(part).state_dict()
    expected = {name: t for name, t in state.items() if not name.endswith("position_ids")}
    foreign = IncompatibleModelError(
        f"The {part} of {file} has tensors that SD 1.x does not have: give an SD 1.x checkpoint."
    )
    # First of all: diffusers takes time that grows with the square of their number.
    if len(tensors) > len(expected):
        raise foreign
    # Newer transformers leave out the level `text_model`.
    found = {
        name if name in expected else name.removeprefix(_TEXT): tensor
        for name, tensor in convert(part, tensors).items()
    }
    for name, tensor in expected.items():
        if name not in found:
            raise LampError(
                f"{file} lacks the tensor '{name}' of an SD 1.x checkpoint: download it again."
            )
        if found[name].shape != tensor.shape:
            raise IncompatibleModelError(
                f"'{name}' of {file} has shape {tuple(found[name].shape)[:8]}, in SD 1.x it has "
                f"{tuple(tensor.shape)}: give a text-to-image checkpoint of SD 1.x (inpainting "
                "models and other families differ)."
            )
    if len(found) > len(expected):
        raise foreign
