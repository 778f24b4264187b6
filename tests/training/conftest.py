"""A UNet and clips that are small enough to train in a test."""

from __future__ import annotations

import pytest

from benchmarks.samples.small_training import small_clips, small_host
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.training.latents import LatentClips


@pytest.fixture(scope="module")
def host() -> DiffusersHost:
    return small_host()


@pytest.fixture(scope="module")
def clips() -> LatentClips:
    return small_clips()
