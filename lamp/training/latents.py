"""Training clips as the UNet sees them: VAE posteriors and text embeddings, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clips.clip_set import ClipSet, Window
from ..errors import ClipError, LampError
from ..files.cache import Found, TensorCache, entry_name

SCALE = 0.18215
"""Latents of the VAE of SD 1.x and 2.x times this have about unit variance; the UNet works on
those. SD-XL's has another one."""

EncodePosterior = Callable[[Tensor], tuple[Tensor, Tensor]]
EmbedPrompts = Callable[[list[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class Posterior:
    """The VAE's posterior of one clip, frame by frame: `f c h w`, unscaled."""

    mean: Tensor
    std: Tensor

    def sample(self, frames: slice, generator: torch.Generator, scale: float = SCALE) -> Tensor:
        """Scaled latents `f c h w`, drawn from the posterior as in the method (not its mode)."""
        mean = self.mean[frames]
        noise = torch.randn(mean.shape, generator=generator)
        return (mean + self.std[frames] * noise) * scale


@dataclass(frozen=True)
class LatentClips:
    """A `ClipSet` ready for tuning: the VAE and the text encoder are no longer needed.

    `text`: a prompt's embedding as `Host.predict` takes it; `scale`: what latents are multiplied
    by for the UNet.
    """

    clips: ClipSet
    posteriors: list[Posterior]
    mirrored: list[Posterior]
    text: dict[str, Tensor]
    scale: float = SCALE

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
        return source[window.clip].sample(self.clips.frame_numbers(window), generator, self.scale)


@dataclass(frozen=True)
class LatentCache:
    """Where posteriors and embeddings are kept between runs, and what tells whose they are.

    - ``vae``: a digest of everything about the VAE that its posteriors depend on;
    - ``prompt``: the same of the text encoder and a prompt, for the prompt's embedding.

    None in place of a digest: it cannot be told, and nothing is kept.
    """

    files: TensorCache
    vae: str | None
    prompt: Callable[[str], str | None]


def cache_latents(
    clips: ClipSet,
    encode: EncodePosterior,
    embed: EmbedPrompts,
    on_clip: Callable[[int, int, bool], None] = lambda done, total, cached: None,
    cache: LatentCache | None = None,
    scale: float = SCALE,
) -> LatentClips:
    """Encode every frame and every prompt once, before the first step.

    A clip takes the memory of its latents, not of its pixels. With a cache nothing is encoded that
    was encoded in an earlier run, to the same bits; each clip is kept as soon as it is done, so
    that a cancel loses none.

    Args:
        encode: `f h w 3` in 0..1 -> mean and std, `f c h w`, unscaled; called with a few frames
            at a time.
        embed: prompts -> `1 n d` for each; for one prompt at a time, so that an embedding does not
            depend on the others.
        on_clip: called with (clips done, clips in all, whether this one came from the cache).
        scale: of the model's latents.

    Raises:
        ClipError: the VAE returned NaN for a clip, or a clip cannot be read.
    """
    sides = (False, True) if clips.settings.flip else (False,)
    posteriors: dict[bool, list[Posterior]] = {False: [], True: []}
    for number in range(len(clips)):
        found = [_posterior(clips, number, mirrored, encode, cache) for mirrored in sides]
        for mirrored, (tensors, _) in zip(sides, found, strict=True):
            posteriors[mirrored].append(Posterior(**tensors))
        on_clip(number + 1, len(clips), all(cached for _, cached in found))
    prompts = dict.fromkeys([*clips.captions, ""])  # the empty one is what samples guide away from
    text = {prompt: _embedding(prompt, embed, cache) for prompt in prompts}
    return LatentClips(clips, posteriors[False], posteriors[True], text, scale)


def _posterior(
    clips: ClipSet,
    number: int,
    mirrored: bool,
    encode: EncodePosterior,
    cache: LatentCache | None,
) -> Found:
    def compute() -> dict[str, Tensor]:
        parts = [encode(chunk.float() / 255) for chunk in clips.chunks(number, mirrored=mirrored)]
        posterior = Posterior(*(torch.cat(each) for each in zip(*parts, strict=True)))
        return vars(_finite(posterior, clips.infos[number].name))

    if cache is None or cache.vae is None:
        return Found(compute(), False)
    name = entry_name("posterior", clips.key(number), mirrored, cache.vae)
    return cache.files.get(name, compute)


def _embedding(prompt: str, embed: EmbedPrompts, cache: LatentCache | None) -> Tensor:
    def compute() -> dict[str, Tensor]:
        return {"text": embed([prompt])[prompt]}

    source = None if cache is None else cache.prompt(prompt)
    if cache is None or source is None:
        return compute()["text"]
    return cache.files.get(entry_name("prompt", prompt, source), compute).tensors["text"]


def _finite(posterior: Posterior, clip: str) -> Posterior:
    if not (posterior.mean.isfinite().all() and posterior.std.isfinite().all()):
        raise ClipError(
            f"The VAE returned NaN for the clip '{clip}': SD 1.x VAEs can overflow in fp16; start "
            "ComfyUI with --fp32-vae, or use another VAE."
        )
    return posterior
