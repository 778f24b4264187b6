"""A small CLIP of a toy world: an image and a text encoder with common embeddings.

It has CLIP's own architecture and key names, so that the paper's metrics (`lamp.metrics`) run in
ComfyUI and on the command line without a download. It knows the pictures and words of its world and
nothing else. `benchmarks/table1/clip_training.py` trains it.

The file contains the keys of transformers' `CLIPModel` in fp16, with the rows of the token table
that the world uses, and both configs and the vocabulary as JSON in its header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .base import END, TABLE, TEXT_CONFIG, expand_embedding, tokenize

if TYPE_CHECKING:
    from transformers import CLIPModel

PATH = Path(__file__).with_name("toy_clip.safetensors")
HEADER = "lamp.toy_clip"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
WIDTH = 64
PATCHES = 8  # along each side of a picture


def vision_config(size: int) -> dict[str, Any]:
    """Of the image encoder for square pictures of `size` pixels."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_channels": 3,
        "image_size": size,
        "patch_size": size // PATCHES,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


def build_clip(vision: dict[str, Any], text: dict[str, Any] | None = None) -> CLIPModel:
    from transformers import CLIPConfig, CLIPModel

    text = TEXT_CONFIG if text is None else text
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIPModel(config)


def normalise(frames: torch.Tensor) -> torch.Tensor:
    """Pictures `n h w 3` in 0..1 as CLIP takes them, `n 3 h w`."""
    return (frames.float() - torch.tensor(MEAN)).div(torch.tensor(STD)).movedim(-1, 1)


def embed_images(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """Projected embeddings `n d` of normalised pictures."""
    return model.visual_projection(model.vision_model(pixels).pooler_output)


def embed_texts(model: CLIPModel, ids: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Projected embeddings `n d` of token ids `n t`; `ends`: where each text's end token is.

    The text model is causal, so tokens behind the end do not count and may be left out.
    """
    hidden = model.text_model(input_ids=ids).last_hidden_state
    return model.text_projection(hidden[torch.arange(len(ids)), ends])


@dataclass(frozen=True)
class ToyClip:
    """The loaded model, frozen, with both encoders of `lamp.metrics`.

    `about`: the file's metadata.
    """

    model: CLIPModel
    words: dict[str, int]
    about: dict[str, Any]

    @torch.no_grad()
    def encode_image(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames `f h w 3` in 0..1 -> `f d`."""
        return embed_images(self.model, normalise(frames))

    @torch.no_grad()
    def encode_text(self, prompt: str) -> torch.Tensor:
        """A prompt of the world's words -> `d`. Raises ValueError for other words."""
        ids = tokenize([prompt], self.words)
        end = int((ids == END).int().argmax())
        return embed_texts(self.model, ids[:, : end + 1], torch.tensor([end]))[0]


def clip_state(path: Path | str = PATH) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The file as a `CLIPModel` state dict in fp16 with the full token table, and its metadata:
    the configs `vision` and `text`, ``words``, ``tokens`` and what training measured."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = json.loads(file.metadata()[HEADER])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state[TABLE] = expand_embedding(state[TABLE], metadata["tokens"])
    return state, metadata


def load_toy_clip(path: Path | str = PATH) -> ToyClip:
    state, metadata = clip_state(path)
    model = build_clip(metadata["vision"], metadata["text"])
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return ToyClip(model.eval().requires_grad_(False), metadata["words"], metadata)
