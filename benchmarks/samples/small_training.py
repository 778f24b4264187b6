"""A UNet and clips small enough to train in a test; as a program, it trains until killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from lamp.clips.load import clips_from_images
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.latents import SCALE, LatentClips, cache_latents
from lamp.training.loop import Training
from lamp.training.optimizers import ProcessGroup
from lamp.training.recipe import TrainConfig
from lamp.training.session import RunFolder, SaveConfig, newest_state, run_training
from lamp.training.state import restore
from lamp.training.warm_start import load_start

FRAMES = 3


def small_host() -> DiffusersHost:
    """A frozen UNet of SD 1.x's kind with two levels and random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    return DiffusersHost(unet.eval().requires_grad_(False))


def small_clips() -> LatentClips:
    """Four clips of five frames."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(5, 8, 8, 3, generator=generator) for _ in range(4)]
    return cache_latents(
        clips_from_images(images, ["one", "two", "three", "four"], FRAMES, 8, 8),
        lambda pixels: (
            pixels.movedim(-1, 1).repeat(1, 2, 1, 1)[:, :4] / SCALE,
            torch.full((len(pixels), 4, 8, 8), 0.1),
        ),
        lambda texts: {text: torch.full((1, 5, 16), float(len(text))) for text in texts},
    )


def small_training(
    host: DiffusersHost, clips: LatentClips, group: ProcessGroup | None = None, **settings: Any
) -> Training:
    """A run before its first step, with these settings of `TrainConfig`."""
    config = TrainConfig(**{"frames": FRAMES, "learning_rate": 1e-2, **settings})
    motion = Motion(map_unet(host.unet)).initialise(0)
    return Training(host, motion, clips, config, group, load_start(config))


def main(folder: Path, steps: int) -> None:
    """Train from the newest state, if there is one, and save the state after every step."""
    host = small_host()
    who = {"base": "abc", "clips": "def"}
    training = small_training(host, small_clips(), steps=steps)
    found = newest_state([folder])
    if found is not None:
        restore(training, found[1], who)
    run_training(training, RunFolder(folder, who), SaveConfig(1, 2, 0), lambda report: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
