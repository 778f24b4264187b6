"""A CLIP in miniature with random weights, whole (transformers) and in ComfyUI's two halves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH = 32
SIZE = 32
COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 0.6, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
}
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def tiny_clip(width: int = WIDTH, seed: int = 0) -> Any:
    """transformers' CLIPModel. It knows nothing, but big weights make it tell things apart."""
    from transformers import CLIPConfig, CLIPModel

    same = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "vocab_size": 49408}
    looks = {"image_size": SIZE, "patch_size": 8}
    config = CLIPConfig(
        text_config={**same, **sizes, **ends},
        vision_config={**same, **sizes, **looks},
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if "norm" not in name and "logit" not in name:
                weight.normal_(std=0.2)
            weight.copy_(weight.half())  # as the host keeps them
    return model


def normalised(frames: Tensor) -> Tensor:
    """``f h w 3`` in 0..1 -> what CLIP takes, ``f 3 h w``."""
    return ((frames - _MEAN) / _STD).movedim(-1, 1)


def image_features(model: Any, frames: Tensor) -> Tensor:
    """``f h w 3`` of the model's own size -> ``f d``."""
    return model.get_image_features(pixel_values=normalised(frames)).pooler_output


def text_features(model: Any, tokenizer: Any, prompts: list[str]) -> Tensor:
    """``n d``."""
    return model.get_text_features(**_tokens(tokenizer, prompts)).pooler_output


def _tokens(tokenizer: Any, prompts: list[str]) -> Any:
    room = {"padding": "max_length", "max_length": 77, "truncation": True}
    return tokenizer(prompts, return_tensors="pt", **room)


def teach_colours(model: Any, tokenizer: Any) -> Any:
    """Choose the text projection so that the names of six plain colours fit their pictures."""
    pictures = torch.tensor(list(COLOURS.values()))[:, None, None].expand(-1, SIZE, SIZE, -1)
    tokens = _tokens(tokenizer, [f"a plain {name} picture" for name in COLOURS])
    pooled = model.text_model(**tokens).pooler_output
    images = torch.nn.functional.normalize(image_features(model, pictures), dim=-1)
    # Away from what they have in common, or the best fit is hardly better than the others.
    wanted = images + 2 * (images - images.mean(0))
    model.text_projection.weight.copy_(torch.linalg.lstsq(pooled, wanted).solution.T.half())
    return model


def comfy_vision(model: Any, folder: Path) -> Any:
    """The host's CLIP_VISION of it."""
    from comfy.clip_vision import ClipVisionModel

    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "patch_size",
        "hidden_act",
        "projection_dim",
    )
    config = model.config.vision_config.to_dict()
    file = folder / "vision.json"
    chosen = {key: config[key] for key in keys}
    file.write_text(json.dumps({**chosen, "model_type": "clip_vision_model"}), encoding="utf-8")
    vision = ClipVisionModel(str(file))
    missing, _ = vision.load_sd(dict(model.state_dict()))
    assert not missing
    return vision


def comfy_text(model: Any) -> Any:
    """The host's CLIP of it, as Load CLIP makes one of clip_l."""
    from comfy.sd import CLIP
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
    from comfy.supported_models_base import ClipTarget

    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
    )
    config = model.config.text_config.to_dict()
    clip = CLIP(
        ClipTarget(SD1Tokenizer, SD1ClipModel),
        model_options={
            "clip_l_model_config": {key: config[key] for key in keys},
            "dtype": torch.float32,
        },
    )
    missing, _ = clip.load_sd(dict(model.state_dict()))
    assert not missing
    return clip
