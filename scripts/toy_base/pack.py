"""The file of a toy base: averaged weights in fp16, and the configs in its header."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from lamp.toy import base

from .vae import finish_vae
from .worlds import WORLDS, World, compact_ids


def pack(args: argparse.Namespace) -> None:
    """Averaged weights and the whitened VAE in one fp16 file."""
    state = torch.load(args.out / "unet.pt", weights_only=True)
    parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text_encoder": {}}
    for name, value in state["average"].items():
        part, key = name.split(".", 1)
        if part == "text_encoder":
            key = "text_model." + key.removeprefix("text_model.")
        parts[part][key] = value
    parts["vae"] = finish_vae(args).state_dict()
    about = {"steps": state["step"], "samples": state["step"] * args.batch * args.workers}
    world = WORLDS[args.world]
    path = args.pack_to or world.path
    write_toy_state(path, world, parts, about)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {about}")


def write_toy_state(
    path: Path | str,
    world: World,
    parts: dict[str, dict[str, torch.Tensor]],
    about: dict[str, Any],
) -> None:
    """Pack trained state dicts; the text encoder's table has one row per ``compact_ids`` + 1."""
    from safetensors.torch import save_file

    tensors = {
        f"{part}.{name}": value.detach().half().contiguous()
        for part in base.PARTS
        for name, value in parts[part].items()
        if not name.endswith("position_ids")
    }
    metadata = {
        "unet": base.UNET_CONFIG,
        "vae": world.vae,
        "text_encoder": base.TEXT_CONFIG,
        "words": world.words,
        "tokens": compact_ids(world.words),
        **about,
    }
    save_file(tensors, str(path), metadata={"format": "pt", "lamp.toy": json.dumps(metadata)})
