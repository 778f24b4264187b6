"""A random SD 1.x in miniature, as a diffusers folder and as one file in the original layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH = 48  # of the text
UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 32,
}
# The host's own conversion, which writes the single file, knows the VAE's four levels only.
VAE: dict[str, Any] = {
    "block_out_channels": [32, 32, 64, 64],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
CONFIGS = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
"""In place of `lamp.hosts.diffusers.single_file.CONFIGS`, for the files of `write_file`."""


@dataclass(frozen=True)
class Source:
    """The models that files are made of."""

    unet: Any
    vae: Any
    text_encoder: Any


def random_source() -> Source:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        models = (
            UNet2DConditionModel(**UNET),
            AutoencoderKL(**VAE),
            CLIPTextModel(CLIPTextConfig(**TEXT)),
        )
        for model in models:
            model.eval().requires_grad_(False)
            for parameter in model.parameters():  # no zeros and ones: each place must count
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return Source(*models)


def write_folder(source: Source, folder: Path, tokenizer: Path) -> Path:
    """As diffusers itself saves a pipeline's parts."""
    for name in ("unet", "vae", "text_encoder"):
        getattr(source, name).save_pretrained(folder / name)
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).write_bytes((tokenizer / name).read_bytes())
    return folder


def write_file(source: Source, path: Path) -> Path:
    """The original layout, by ComfyUI's own tables of names; needs the fixture `comfy`."""
    from safetensors.torch import save_file

    save_file(ldm_state(source), path)
    return path


def ldm_state(source: Source) -> dict[str, Tensor]:
    import comfy.utils
    from comfy.diffusers_convert import convert_vae_state_dict

    names = comfy.utils.unet_to_diffusers(
        {
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 2],
            "transformer_depth": [1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
            "num_heads": 2,
        }
    )
    unet = source.unet.state_dict()
    parts = {
        "model.diffusion_model.": {names[name]: tensor for name, tensor in unet.items()},
        "first_stage_model.": convert_vae_state_dict(dict(source.vae.state_dict())),
        "cond_stage_model.transformer.": _text_names(source.text_encoder.state_dict()),
        "": {"model_ema.decay": torch.tensor(0.9999)},
    }
    return {
        f"{prefix}{name}": tensor.contiguous()
        for prefix, part in parts.items()
        for name, tensor in part.items()
    }


def _text_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in state.items()}
    return {**named, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def linked(folder: Path, place: Path, *names: str) -> Path:
    for name in names:
        (place / name).symlink_to(folder / name)
    return place


def predicting(folder: Path, kind: str) -> Path:
    (folder / "scheduler").mkdir()
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(f'{{"prediction_type": "{kind}"}}')
    return folder
