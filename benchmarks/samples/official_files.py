"""Files of the official training, with its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lamp.method.architecture import map_unet

State = dict[str, Tensor]


def official_state(base: State, learned: State, unet: nn.Module) -> State:
    """The state of the official UNet, with tuned queries in place of the base's."""
    convs = {site.name for site in map_unet(unet).convs}
    state = {}
    for name, tensor in base.items():
        module, _, parameter = name.rpartition(".")
        state[f"{module}.conv2d.{parameter}" if module in convs else name] = tensor.clone()
    for name, tensor in learned.items():
        state[name] = state[name] + tensor if name in state else tensor.contiguous()
    return state


def write_official(folder: Path, state: Any, name: str = "diffusion_pytorch_model.bin") -> Path:
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    if name.endswith(".bin"):
        torch.save(state, folder / "unet" / name)
    else:
        save_file(state, folder / "unet" / name)
    return folder
