"""Training clips of noise, which need no VAE."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.speed.models import TEXT_TOKENS, Shape
from lamp.clips.load import clips_from_images
from lamp.training.latents import LatentClips, cache_latents


def noise_clips(shape: Shape, text: int) -> LatentClips:
    """One clip with random latents of `shape` and random text embeddings of width `text`."""
    images = [torch.rand(shape.frames, shape.height, shape.width, 3)]
    clips = clips_from_images(images, ["noise"], shape.frames, shape.width, shape.height)

    def encode(frames: Tensor) -> tuple[Tensor, Tensor]:
        size = (len(frames), 4, shape.height, shape.width)
        return torch.randn(size), torch.ones(size)

    def embed(prompts: list[str]) -> dict[str, Tensor]:
        return {prompt: torch.randn(1, TEXT_TOKENS, text) for prompt in prompts}

    return cache_latents(clips, encode, embed)
