"""The toy base model: Stable Diffusion 1.x in miniature, on 32x32 pixels and 16x16 latents.

Every part is the usual class with the usual key names, so what works here works on the real model.
Widths are multiples of 32, because ComfyUI's UNet and VAE have GroupNorms of 32 groups. One file
contains ``unet.``, ``vae.`` and ``text_encoder.`` keys in fp16, and the configs and the vocabulary
as JSON in its header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LampError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

PATH = Path(__file__).with_name("toy_base.safetensors")
SCALE = 0.18215  # Stable Diffusion 1.x's latent factor
START, END = 49406, 49407  # CLIP's first and last token; SD 1.x pads with the last
VOCABULARY_SIZE = 49408
POSITIONS = 77
PARTS = ("unet", "vae", "text_encoder")
TABLE = "text_model.embeddings.token_embedding.weight"

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 64, 64],  # for ComfyUI, INTEGER multiples of the first
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 2,  # in SD 1.x configs this is the NUMBER of heads
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "use_linear_projection": False,
}
# layers_per_block 0: no residual blocks in the encoder's levels, one per level in the decoder, for
# half the cost.
VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [64, 64],
    "layers_per_block": 0,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": SCALE,
}
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 256,
    "projection_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": END,
}

# The world's vocabulary with CLIP's token ids: one token per word.
WORDS: dict[str, int] = {
    "a": 320, "an": 550, "and": 537, "beige": 26677, "big": 1205, "black": 1449, "blue": 1746,
    "brown": 2866, "checked": 10387, "cross": 3417, "diamond": 6235, "disc": 10712,
    "dotted": 47950, "down": 1136, "drop": 3387, "falls": 4778, "flies": 8070, "floats": 33272,
    "gray": 7048, "green": 1901, "ground": 2461, "grows": 13352, "heart": 1936, "jumps": 18911,
    "left": 1823, "moon": 3293, "moves": 6880, "moving": 3584, "navy": 5598, "object": 14115,
    "olive": 9898, "on": 525, "orange": 4287, "pink": 3360, "plain": 10709, "purple": 5496,
    "red": 736, "right": 1155, "ring": 2540, "rises": 13362, "rolls": 8614, "shape": 6448,
    "slides": 15939, "small": 2442, "spins": 27243, "square": 3999, "star": 1565, "still": 1170,
    "striped": 22192, "swings": 29141, "teal": 22821, "the": 518, "triangle": 14615,
    "turns": 3185, "two": 1237, "up": 705, "waves": 7882, "white": 1579, "with": 593,
    "yellow": 4481,
}  # fmt: skip


def build_unet(config: dict[str, Any] | None = None) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    widths = (config or UNET_CONFIG)["block_out_channels"]
    # ComfyUI's UNet has channel_mult as integers: 1.5 x 64 raises TypeError in its UNetModel.
    if any(width % widths[0] for width in widths):
        raise ValueError(f"widths {widths} are not multiples of the first, as ComfyUI needs")
    return UNet2DConditionModel(**(config or UNET_CONFIG))


def build_vae(config: dict[str, Any] | None = None) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**(config or VAE_CONFIG))


def build_text_encoder(config: dict[str, Any] | None = None) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**(config or TEXT_CONFIG)))


def check_clips(sizes: Iterable[tuple[int, int]], side: int) -> None:
    """Check that clips have the size of the pictures that a toy base draws.

    Args:
        sizes: width and height of the clips.
        side: of the base's pictures, in pixels.

    Raises:
        LampError: one has another size.
    """
    for width, height in sizes:
        if (width, height) != (side, side):
            raise LampError(
                f"The clips are {width} x {height}, but this toy base draws only {side} x {side}: "
                f"set width and height of the clips to {side}, or use the toy base of their world."
            )


# --- words ----------------------------------------------------------------------------------


def tokenize(texts: list[str], words: dict[str, int]) -> torch.Tensor:
    """CLIP token ids (n, 77) of lower-case words that are one token each.

    Equal to CLIP's tokenizer on the world's vocabulary. Raises ValueError for other words, whose
    tokens would silently differ from those of ComfyUI.
    """
    ids = torch.full((len(texts), POSITIONS), END)
    ids[:, 0] = START
    for row, text in enumerate(texts):
        tokens = []
        for word in text.lower().replace(",", " ").split():
            if word not in words:
                raise ValueError(f"the toy model does not know the word {word!r}")
            tokens.append(words[word])
        tokens = tokens[: POSITIONS - 2]
        ids[row, 1 : 1 + len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return ids


def expand_embedding(rows: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """The full table (49408, width): row 0 for every token, the other rows for ``ids``."""
    table = rows[:1].repeat(VOCABULARY_SIZE, 1)
    table[torch.tensor(ids)] = rows[1:]
    return table


# --- the file ---------------------------------------------------------------------------------


def toy_state(path: Path | str = PATH) -> dict[str, Any]:
    """The file as state dicts: 'unet', 'vae', 'text_encoder' (full table) and 'metadata'.

    Key names are those of published diffusers folders (``text_model.…`` for the text encoder);
    tensors are fp16. Metadata: the three configs, ``words`` (word -> token id) and ``tokens``.
    """
    from safetensors import safe_open

    parts: dict[str, Any] = {part: {} for part in PARTS}
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata()
        for key in file.keys():  # noqa: SIM118 - not a dict
            part, name = key.split(".", 1)
            parts[part][name] = file.get_tensor(key)
    metadata = json.loads(header["lamp.toy"])
    text = parts["text_encoder"]
    text[TABLE] = expand_embedding(text[TABLE], metadata["tokens"])
    return {**parts, "metadata": metadata}


def load_text_weights(model: CLIPTextModel, state: dict[str, torch.Tensor]) -> None:
    """Load strictly with either naming: newer transformers dropped the level ``text_model.``.

    Raises ValueError if a tensor is missing or unknown.
    """
    prefix = "text_model."
    if not any(name.startswith(prefix) for name in model.state_dict()):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    missing, foreign = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or foreign:
        raise ValueError(f"text encoder does not match: missing {missing}, unknown {foreign}")


@dataclass
class ToyBase:
    """The loaded diffusers models, frozen. ``config`` is the file's metadata."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    config: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> torch.Tensor:
        """Last hidden states after the final norm, (n, 77, 64), as Stable Diffusion 1.x uses."""
        ids = tokenize(texts, self.config["words"]).to(self.device)
        return self.text_encoder(ids).last_hidden_state

    @torch.no_grad()
    def encode(self, images: Any, generator: torch.Generator | None = None) -> torch.Tensor:
        """Latents (n, 4, h/2, w/2) times 0.18215, so with unit standard deviation.

        ``images`` (n, h, w, 3): bytes or floats in 0..1, array or tensor. With a generator the
        posterior is sampled, otherwise its mode is used.
        """
        pixels = torch.as_tensor(images)
        bytes_given = pixels.dtype == torch.uint8
        pixels = pixels.to(self.device, self.vae.dtype)
        pixels = pixels / 255.0 if bytes_given else pixels
        posterior = self.vae.encode(pixels.permute(0, 3, 1, 2) * 2.0 - 1.0).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return latents * SCALE

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (n, h, w, 3), floats in 0..1."""
        decoded = self.vae.decode(latents.to(self.device, self.vae.dtype) / SCALE).sample
        return (decoded / 2.0 + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1)


def load_toy_base(
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    path: Path | str = PATH,
) -> ToyBase:
    """Build the three models of the file, in evaluation mode and frozen."""
    state = toy_state(path)
    config = state["metadata"]
    unet, vae = build_unet(config["unet"]), build_vae(config["vae"])
    text_encoder = build_text_encoder(config["text_encoder"])
    unet.load_state_dict(state["unet"])
    vae.load_state_dict(state["vae"])
    load_text_weights(text_encoder, state["text_encoder"])
    for model in (unet, vae, text_encoder):
        model.eval().requires_grad_(False).to(device=device, dtype=dtype)
    return ToyBase(unet, vae, text_encoder, config)
