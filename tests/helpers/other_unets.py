"""UNets of the shapes of SD 2.x and SD-XL in miniature, with random weights, for both hosts.

The real server loads this file by its path: it imports nothing else of the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lamp.method.prompts import join_pooled

POOLED = 24  # SD-XL: 1280
FRAMES = 4

_COMMON: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 32,
    "use_linear_projection": True,
    "layers_per_block": 1,
}
SD2: dict[str, Any] = {
    **_COMMON,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 1024,
    "attention_head_dim": [2, 4],
}
# No attention on the first level, several blocks below, and the vector of pooled text and sizes.
SDXL: dict[str, Any] = {
    **_COMMON,
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1, 2],
    "cross_attention_dim": 2048,
    "attention_head_dim": [2, 4, 4],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": POOLED + 6 * 256,
}
# name -> config, and whether it predicts v
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "sd2": (SD2, False),
    "sd2 v-prediction": (SD2, True),
    "sdxl": (SDXL, False),
    "sdxl v-prediction": (SDXL, True),
}


def state_of(kind: str) -> dict[str, Tensor]:
    """Weights by canonical name."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DConditionModel.from_config(KINDS[kind][0]).state_dict()


def patcher_of(kind: str) -> Any:
    """A MODEL of the host's own class for the family."""
    from lamp.hosts.comfy.models import build_patcher

    return build_patcher(KINDS[kind][0], state_of(kind), v_prediction=KINDS[kind][1])


def diffusers_of(kind: str) -> Any:
    from lamp.hosts.diffusers.unet import build_host

    return build_host(KINDS[kind][0], state_of(kind), v_prediction=KINDS[kind][1])


def is_xl(kind: str) -> bool:
    return kind.startswith("sdxl")


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text_of(kind: str, seed: int, tokens: int = 7) -> Tensor:
    """One prompt, as `Host.predict` takes it."""
    text = drawn(seed, 1, tokens, KINDS[kind][0]["cross_attention_dim"])
    return join_pooled(text, pooled_of(seed)) if is_xl(kind) else text


def pooled_of(seed: int) -> Tensor:
    return drawn(seed + 100, 1, POOLED)


class SmallClip:
    """ComfyUI's own text encoder of a family, small, its text then widened to the family's width.

    Full width would take 400 MB for the vocabulary alone.
    """

    def __init__(self, kind: str) -> None:
        import comfy.sdxl_clip
        import comfy.text_encoders.sd2_clip
        from comfy.sd import CLIP
        from comfy.supported_models_base import ClipTarget

        if is_xl(kind):
            classes = comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel
        else:
            sd2 = comfy.text_encoders.sd2_clip
            classes = sd2.SD2Tokenizer, sd2.SD2ClipModel
        config = {
            "hidden_size": POOLED,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "projection_dim": POOLED,
        }
        names = [f"clip_{letter}_model_config" for letter in "lgh"]
        options = {"dtype": torch.float32, **dict.fromkeys(names, config)}
        self._clip = CLIP(ClipTarget(*classes), model_options=options)
        generator = torch.Generator().manual_seed(0)
        for parameter in self._clip.cond_stage_model.parameters():
            parameter.data.normal_(std=0.3, generator=generator)
        self._width = KINDS[kind][0]["cross_attention_dim"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clip, name)

    def encode_from_tokens_scheduled(self, *args: Any, **options: Any) -> Any:
        found = self._clip.encode_from_tokens_scheduled(*args, **options)
        return [[text @ drawn(9, text.shape[-1], self._width), about] for text, about in found]
