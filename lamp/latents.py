"""Training clips as the UNet sees them: VAE posteriors and text embeddings, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .clips import ClipSet, Window
from .errors import ClipError, LampError

SCALE = 0.18215
"""Latents of the SD 1.x VAE times this have about unit variance; the UNet works on those."""

EncodePosterior = Callable[[Tensor], tuple[Tensor, Tensor]]
EmbedPrompts = Callable[[list[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class Posterior:
    """The VAE's posterior of one clip, frame by frame: `f c h w`, unscaled."""

    mean: Tensor
    deviation: Tensor

    def sample(self, frames: slice, generator: torch.Generator) -> Tensor:
        """Scaled latents `f c h w`, drawn from the posterior as in the method (not its mode)."""
        mean = self.mean[frames]
        noise = torch.randn(mean.shape, generator=generator)
        return (mean + self.deviation[frames] * noise) * SCALE


@dataclass(frozen=True)
class LatentClips:
    """A `ClipSet` ready for tuning: the VAE and the text encoder are no longer needed."""

    clips: ClipSet
    posteriors: list[Posterior]
    mirrored: list[Posterior]
    text: dict[str, Tensor]

    def check(self, frames: int) -> None:
        """See that the windows have as many frames as the run asks for."""
        if frames != self.clips.settings.frames:
            raise LampError(
                f"The clips are cut into windows of {self.clips.settings.frames} frames, the "
                f"training asks for {frames}: set both to the same number."
            )

    def draw(self, window: Window, generator: torch.Generator) -> Tensor:
        """A window's latents `f c h w`, scaled, drawn from the posterior."""
        source = self.mirrored if window.flipped else self.posteriors
        return source[window.clip].sample(self.clips.frame_numbers(window), generator)


def cache_latents(
    clips: ClipSet,
    encode: EncodePosterior,
    embed: EmbedPrompts,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> LatentClips:
    """Encode every frame and every prompt once, before the first step.

    Args:
        encode: `f h w 3` in 0..1 -> mean and deviation, `f c h w`, unscaled.
        embed: prompts -> `1 n d` for each.
        on_clip: called with (clips done, clips in all).

    Raises:
        ClipError: the VAE returned NaN for a clip.
    """
    posteriors, mirrored = [], []
    for number, info in enumerate(clips.infos):
        posteriors.append(_finite(_encode(clips, number, encode, False), info.name))
        if clips.settings.flip:
            mirrored.append(_encode(clips, number, encode, True))
        on_clip(number + 1, len(clips))
    return LatentClips(clips, posteriors, mirrored, embed(clips.captions))


def _encode(clips: ClipSet, number: int, encode: EncodePosterior, mirrored: bool) -> Posterior:
    """The posterior of one clip, whose frames are decoded and encoded few at a time."""
    parts = [encode(chunk.float() / 255) for chunk in clips.chunks(number, mirrored=mirrored)]
    return Posterior(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _finite(posterior: Posterior, clip: str) -> Posterior:
    if not (posterior.mean.isfinite().all() and posterior.deviation.isfinite().all()):
        raise ClipError(
            f"The VAE returned NaN for the clip '{clip}': SD 1.x VAEs can overflow in fp16; start "
            "ComfyUI with --fp32-vae, or use another VAE."
        )
    return posterior
