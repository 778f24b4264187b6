"""The base model of the second world: 64x64 pixels, VAE factor 4, 16x16 latents.

The UNet is the first world's, so tuning and sampling cost the same; `load_toy_base` in `..base`
loads either file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import base

PATH = Path(__file__).with_name("scenes_base.safetensors")
CLIP_PATH = Path(__file__).with_name("scenes_clip.safetensors")
VAE_CONFIG: dict[str, Any] = {
    **base.VAE_CONFIG,
    "block_out_channels": [64, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "sample_size": 64,
}
