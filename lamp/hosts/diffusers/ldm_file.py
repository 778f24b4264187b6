"""A Stable Diffusion 1.x checkpoint in one file, in the original (LDM) layout, for diffusers.

Shapes are read from the tensors, so nothing else is needed; what tensors do not tell is that of
SD 1.x: 8 heads in the UNet, heads of 64 channels in the text encoder. A file may say otherwise in
its header: `lamp.heads` = `{"unet": 2, "text": 2}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import IncompatibleModelError, LampError
from ...files.header import check_file
from ...files.strict_json import read_json
from ...method.architecture import canonical_names

State = dict[str, Tensor]

_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_TEXT = "cond_stage_model.transformer."
_UNET_HEADS, _TEXT_HEAD_WIDTH, _MOST_HEADS = 8, 64, 1024
# Where a motion for another family can be trained.
_ELSEWHERE = {
    "SD-XL": ", or train in ComfyUI with LAMP Trainer",
    "SD 2.x": ", or the model as a folder of diffusers",
}

_VAE_NAMES = (
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"(attentions\.0)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.0)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.0)\.proj_out\.", r"\1.to_out.0."),
)


@dataclass(frozen=True)
class LdmFile:
    """The three models of a file: configs and weights as diffusers and transformers name them."""

    unet_config: dict[str, Any]
    unet: State
    vae_config: dict[str, Any]
    vae: State
    text_config: dict[str, Any]
    text: State


def read_ldm_file(path: Path) -> LdmFile:
    """Read a checkpoint such as `v1-5-pruned-emaonly.safetensors`.

    Raises:
        LampError: it cannot be read, or lacks one of the three models.
        IncompatibleModelError: it is no SD 1.x checkpoint.
    """
    parts, header = _read(path)
    heads = _heads(path.name, header)
    try:
        unet, vae = _canonical(parts[_UNET]), _vae_state(parts[_VAE])
        text = _text_state(parts[_TEXT])
        return LdmFile(
            _unet_config(unet, heads.get("unet", _UNET_HEADS)),
            unet,
            _vae_config(vae),
            vae,
            _text_config(text, heads.get("text")),
            text,
        )
    except KeyError as error:
        raise LampError(
            f"{path.name} lacks the tensor {error}: it is no whole SD 1.x checkpoint; download it "
            "again."
        ) from error
    except IncompatibleModelError:
        raise
    except (ValueError, AttributeError, IndexError, TypeError, RecursionError) as error:
        raise LampError(
            f"{path.name} has tensors that no SD 1.x checkpoint has ({str(error)[:200]}): download "
            "it again."
        ) from error


def _read(path: Path) -> tuple[dict[str, State], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    parts: dict[str, State] = {_UNET: {}, _VAE: {}, _TEXT: {}}
    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _check_family(path.name, names)
            for name in names:
                prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
                if prefix is not None:
                    # A copy: nothing stays mapped.
                    read = file.get_tensor(name).to(torch.float32, copy=True)
                    parts[prefix][name.removeprefix(prefix)] = read
            return parts, file.metadata() or {}
    except LampError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
        raise LampError(
            f"{path.name} is no readable .safetensors file ({str(error)[:200]}): download it again."
        ) from error


def _check_family(file: str, names: list[str]) -> None:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    for sign, family in (
        ("conditioner.embedders.", "SD-XL"),
        ("cond_stage_model.model.", "SD 2.x"),
        ("model.diffusion_model.double_blocks.", "Flux"),
        ("model.diffusion_model.joint_blocks.", "SD 3"),
    ):
        if has(sign):
            raise IncompatibleModelError(
                f"{file} is a checkpoint of {family}, of single files only SD 1.x is read: give "
                f"such a checkpoint{_ELSEWHERE.get(family, '')}."
            )
    for prefix, part in ((_UNET, "UNet"), (_VAE, "VAE"), (_TEXT, "text encoder")):
        if not has(prefix):
            raise LampError(
                f"{file} holds no {part} (no '{prefix}...'): give a full SD 1.x checkpoint, or a "
                "diffusers folder."
            )


def _heads(file: str, header: Mapping[str, str]) -> dict[str, int]:
    try:
        heads = read_json(header.get("lamp.heads", "{}"))
        for part, number in heads.items():
            if type(number) is not int or not 0 < number <= _MOST_HEADS:
                raise ValueError(f"{part[:100]} is no count of heads")
        return dict(heads)
    except (AttributeError, ValueError, RecursionError) as error:
        raise LampError(
            f"'lamp.heads' in the header of {file} is damaged ({str(error)[:100]}): download "
            "it again."
        ) from error


class _Branch(nn.Module):
    """A module that is its children, as the UNet's blocks are: enough of one to be mapped."""

    def __iter__(self) -> Iterator[nn.Module]:
        return (self._modules[name] for name in sorted(self._modules, key=int))  # type: ignore[misc]


def _canonical(state: State) -> State:
    """A UNet's tensors by canonical name, found by the map that reads them off a UNet."""
    root = _Branch()
    for name, tensor in state.items():
        *path, last = name.split(".")
        branch: nn.Module = root
        for part in path:
            if part not in branch._modules:
                branch.add_module(part, _Branch())
            branch = branch._modules[part]  # type: ignore[assignment]
        branch.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    names = canonical_names(root)
    return {_renamed(name, names): tensor for name, tensor in state.items()}


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    module, _, parameter = name.rpartition(".")
    return f"{modules[module]}.{parameter}"


def _vae_state(state: State) -> State:
    levels = _count(state, r"decoder\.up\.(\d+)\.")
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in _VAE_NAMES:
            name = re.sub(pattern, new, name)
        # The original layout counts the decoder's levels from the finest.
        name = re.sub(
            r"^decoder\.up_blocks\.(\d+)",
            lambda match: f"decoder.up_blocks.{levels - 1 - int(match[1])}",
            name,
        )
        if ".attentions." in name and tensor.ndim == 4:
            tensor = tensor.flatten(1)  # 1x1 convolutions, in diffusers linear layers
        renamed[name] = tensor
    return renamed


def _text_state(state: State) -> State:
    """Some checkpoints leave out the level `text_model`, most hold the plain numbers 0..76, too."""
    return {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
    }


def _unet_config(state: State, heads: int) -> dict[str, Any]:
    levels = _count(state, r"down_blocks\.(\d+)\.")
    down = [f"down_blocks.{i}.attentions.0.norm.weight" in state for i in range(levels)]
    up = [f"up_blocks.{i}.attentions.0.norm.weight" in state for i in range(levels)]
    queries = (name for name in state if name.endswith(".attn2.to_k.weight"))
    text = next(queries, None)
    if text is None or state["conv_in.weight"].shape[1] != 4:
        raise IncompatibleModelError(
            f"The UNet takes {state['conv_in.weight'].shape[1]} channels; text-to-image models of "
            "SD 1.x take 4 (inpainting models take 9): give such a checkpoint."
        )
    return {
        "in_channels": 4,
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": [
            state[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(levels)
        ],
        "layers_per_block": _count(state, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in down],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in up],
        "cross_attention_dim": state[text].shape[1],
        "attention_head_dim": heads,  # as diffusers reads it, the NUMBER of heads
        "use_linear_projection": state["mid_block.attentions.0.proj_in.weight"].ndim == 2,
    }


def _vae_config(state: State) -> dict[str, Any]:
    levels = _count(state, r"decoder\.up_blocks\.(\d+)\.")
    return {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": state["post_quant_conv.weight"].shape[1],
        "block_out_channels": [
            state[f"decoder.up_blocks.{levels - 1 - i}.resnets.0.conv1.weight"].shape[0]
            for i in range(levels)
        ],
        "layers_per_block": _count(state, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": 32,
    }


def _text_config(state: State, heads: int | None) -> dict[str, Any]:
    prefix = "text_model."
    words = state[f"{prefix}embeddings.token_embedding.weight"]
    places = state[f"{prefix}embeddings.position_embedding.weight"]
    width = words.shape[1]
    return {
        "vocab_size": words.shape[0],
        "hidden_size": width,
        "intermediate_size": state[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "projection_dim": width,
        "num_hidden_layers": _count(state, rf"{prefix}encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads or max(width // _TEXT_HEAD_WIDTH, 1),
        "max_position_embeddings": places.shape[0],
        "hidden_act": "quick_gelu",
    }


def _count(state: State, pattern: str) -> int:
    """How many places of a list are filled, by the numbers in the names, without a gap: modules
    are made for all of them."""
    found = {match[1] for name in state if (match := re.match(pattern, name))}
    if found != {str(place) for place in range(len(found))}:
        raise ValueError(f"the numbers in '{pattern}' leave places out")
    return len(found)
