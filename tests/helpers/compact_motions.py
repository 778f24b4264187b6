"""A small motion to compress, and the header of a compact file by independent means."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import torch
from torch import Tensor

from lamp.method.architecture import BlockSite, ConvSite, SiteMap
from lamp.method.motion import Motion
from lamp.motion_file.compress import compress
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.encoding import BYTES_KEY, decode, read_encodings

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
SITES = SiteMap(
    (ConvSite("conv_in", "conv_in", 96),), (BlockSite(BLOCK, BLOCK, 96, 8),), (), (), "sd1"
)
CONFIG = MotionConfig(family="sd1", prompt="a horse runs")
CONV = "conv_in.conv1d.weight"


def falling(rows: int, columns: int, seed: int, pace: float = 0.8) -> Tensor:
    """A matrix whose singular values are `pace^k`, as what training leaves falls off."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    return (left * pace ** torch.arange(rows)) @ right.T


def compressible() -> dict[str, Tensor]:
    """Queries, keys and values are noise, the rest falls off; the query delta is zero."""
    state = dict(Motion(SITES).initialise(0).state_dict())
    generator = torch.Generator().manual_seed(1)
    for seed, (name, tensor) in enumerate(state.items()):
        if tensor.ndim == 1:
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.01
        elif name == CONV or ".to_out." in name:
            state[name] = 0.1 * falling(96, tensor[0].numel(), seed).reshape(tensor.shape)
    return state


def forms_of(text: str) -> dict[str, Any]:
    """`lamp.rank` of a header, as docs/motion_file.md tells."""
    forms: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return forms


def header_text(forms: Any) -> str:
    raw = forms if isinstance(forms, str) else json.dumps(forms)
    return base64.b64encode(zlib.compress(raw.encode())).decode()


def round_trip(
    state: dict[str, Tensor], size: float, importance: dict[str, float] | None = None
) -> dict[str, Tensor]:
    data, header = compress(state, size, importance)
    return decode("m", {BYTES_KEY: data}, read_encodings("m", header))


def error(found: Tensor, wanted: Tensor) -> float:
    """Squared, as a share."""
    return ((found.float() - wanted).square().sum() / wanted.square().sum()).item()
