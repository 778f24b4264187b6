"""The toy base as MODEL, CLIP and VAE of ComfyUI, so that everything runs without a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor

from ...errors import IncompatibleModelError
from ...motion_file.file import MotionFile
from ...toy.base import toy_state
from .binding import image_model_hash
from .models import build_patcher

_SIDE = "lamp_toy_side"
"""Attached to a toy MODEL and VAE: side of their pictures in pixels."""


class ToyModels(NamedTuple):
    """MODEL, CLIP and VAE of ComfyUI."""

    model: Any
    clip: Any
    vae: Any


def load_toy_models(state: dict[str, Any]) -> ToyModels:
    """Build ComfyUI's models from `lamp.toy.base.toy_state()`."""
    config = state["metadata"]
    models = ToyModels(
        build_patcher(config["unet"], _floats(state["unet"])),
        _build_clip(config["text_encoder"], _floats(state["text_encoder"])),
        _build_vae(config["vae"], _floats(state["vae"])),
    )
    for patcher in (models.model, models.vae.patcher):
        patcher.set_attachments(_SIDE, config["vae"]["sample_size"])
    return models


def toy_side(model: Any) -> int | None:
    """Side in pixels of the pictures of a toy MODEL or VAE; None for any other."""
    attached = getattr(getattr(model, "patcher", model), "get_attachment", None)
    return None if attached is None else attached(_SIDE)


def check_toy_motion(model: Any, file: MotionFile) -> None:
    """Check that a motion was not trained on the toy base of another world than a toy MODEL's.

    Raises:
        IncompatibleModelError: it was.
    """
    from ...toy.worlds import BASES

    side = toy_side(model)
    for world, path in BASES.items() if side else ():
        other = load_toy_models(toy_state(path)).model
        if toy_side(other) != side and image_model_hash(other) == file.config.base_hash:
            raise IncompatibleModelError(
                f"{file.name} was trained on the toy base of the world {world}, but the connected "
                f"MODEL is another toy base: set world to {world} in Load LAMP Toy Base."
            )


def load_toy_clip_models(state: dict[str, Tensor], metadata: dict[str, Any]) -> tuple[Any, Any]:
    """CLIP_VISION and CLIP of ComfyUI from `lamp.toy.clip.clip_state()`."""
    floats = _floats(state)
    text = {n: v for n, v in floats.items() if n.startswith(("text_model.", "text_projection."))}
    vision = {n: v for n, v in floats.items() if n not in text and n != "logit_scale"}
    return _build_clip_vision(metadata["vision"], vision), _build_clip(metadata["text"], text)


def _build_clip_vision(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    import folder_paths
    from comfy.clip_vision import ClipVisionModel

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"lamp_toy_clip_{uuid4().hex}.json"
    try:  # the class reads its configuration from a file
        path.write_text(json.dumps(config), encoding="utf-8")
        clip_vision = ClipVisionModel(str(path))
    finally:
        path.unlink(missing_ok=True)
    clip_vision.load_sd(state)
    return clip_vision


def _floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in state.items()}


def _build_clip(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    from comfy.sd import CLIP
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
    from comfy.supported_models_base import ClipTarget

    clip = CLIP(
        ClipTarget(SD1Tokenizer, SD1ClipModel),
        model_options={"clip_l_model_config": config, "dtype": torch.float32},
    )
    # SD 1.x never uses the projection, but without a value it would be uninitialised memory.
    projection = {"text_projection.weight": torch.eye(config["hidden_size"])}
    clip.load_sd({**projection, **state})
    return clip


def _build_vae(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    from comfy.sd import VAE

    widths = config["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": config["latent_channels"],
        "resolution": config["sample_size"],
        "in_channels": 3,
        "out_ch": 3,
        "ch": widths[0],
        "ch_mult": [width // widths[0] for width in widths],
        "num_res_blocks": config["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"ddconfig": ddconfig, "embed_dim": config["latent_channels"]}
    vae = VAE(sd=_ldm_vae_state(state, len(widths)), config={"params": params}, dtype=torch.float32)
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(widths) - 1)
    return vae


def _ldm_vae_state(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """ComfyUI's conversion counts the decoder's levels down from the 4 of SD 1.x."""
    from comfy.diffusers_convert import convert_vae_state_dict

    converted = convert_vae_state_dict(dict(state))
    for level in range(levels):
        prefix, host = f"decoder.up.{level + 4 - levels}.", f"decoder.up.{level}."
        for name in [name for name in converted if name.startswith(prefix)]:
            converted[host + name.removeprefix(prefix)] = converted.pop(name)
    return converted
