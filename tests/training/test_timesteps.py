"""Which timesteps a training sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.samples.small_training import FRAMES, small_clips, small_host
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.batches import Batch
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig

Draw = tuple[Batch, Tensor, Tensor]


def draws(shift: float) -> list[Draw]:
    host = small_host()
    motion = Motion(map_unet(host.unet)).initialise(0)
    config = TrainConfig(steps=1, frames=FRAMES, batch=2, timestep_shift=shift)
    training = Training(host, motion, small_clips(), config)
    return [training._next_batch() for _ in range(200)]


def test_a_shift_changes_the_timesteps_alone() -> None:
    plain, shifted = draws(1.0), draws(3.0)
    for (batch, noise, timesteps), (other, same, moved) in zip(plain, shifted, strict=True):
        assert torch.equal(batch.latents, other.latents) and torch.equal(noise, same)
        assert (moved >= timesteps).all()
    for found, share in ((plain, 0.25), (shifted, 0.5)):
        noisy = torch.cat([timesteps for _, _, timesteps in found]) >= 750
        assert noisy.double().mean().item() == pytest.approx(share, abs=0.08)
