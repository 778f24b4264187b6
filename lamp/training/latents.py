"""Training clips for the UNet: VAE posteriors and text embeddings, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..clips.clip_set import ClipSet, Window
from ..errors import ClipError, LampError
from ..files.cache import Found, TensorCache, entry_name

SCALE = 0.18215
"""Factor that gives latents of SD 1.x and 2.x about unit variance, as the UNet expects. SD-XL has
another."""

EncodePosterior = Callable[[Tensor], tuple[Tensor, Tensor]]
EmbedPrompts = Callable[[list[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class Posterior:
    """The VAE's posterior of one clip, frame by frame: `f c h w`, unscaled."""

    mean: Tensor
    std: Tensor

    def sample(self, frames: slice, generator: torch.Generator, scale: float = SCALE) -> Tensor:
        """Scaled latents `f c h w`, sampled from the posterior as in the official code."""
        mean = self.mean[frames]
        noise = torch.randn(mean.shape, generator=generator)
        return (mean + self.std[frames] * noise) * scale


@dataclass(frozen=True)
class LatentClips:
    """A `ClipSet` ready for training, without VAE and text encoder.

    `text`: prompt -> embedding, see `Host.predict`; `scale`: of the latents, for the UNet;
    `copies`: one list like `posteriors` for each distorted copy.
    """

    clips: ClipSet
    posteriors: list[Posterior]
    mirrored: list[Posterior]
    text: dict[str, Tensor]
    scale: float = SCALE
    copies: list[list[Posterior]] = field(default_factory=list)

    def check(self, frames: int) -> None:
        """Check that the windows have `frames` frames."""
        if frames != self.clips.settings.frames:
            raise LampError(
                f"The clips have windows of {self.clips.settings.frames} frames, but the training "
                f"has frames {frames}: set both to the same number."
            )

    @property
    def encodings(self) -> dict[str, Tensor]:
        """One frame's and one caption's, by which a resumed run knows its VAE and CLIP."""
        prompt = max(self.clips.captions, key=len, default="")
        return {"VAE": self.posteriors[0].mean[0], "CLIP": self.text[prompt]}

    def draw(self, window: Window, generator: torch.Generator) -> Tensor:
        """Scaled latents `f c h w` of a window, sampled from the posterior."""
        source = self.mirrored if window.flipped else self.posteriors
        if window.copy:
            source = self.copies[window.copy - 1]
        return source[window.clip].sample(self.clips.frame_numbers(window), generator, self.scale)


@dataclass(frozen=True)
class LatentCache:
    """Cache of posteriors and embeddings between runs.

    - ``vae``: digest of everything that the VAE's posteriors depend on;
    - ``prompt``: prompt -> digest of the prompt and the text encoder.

    None instead of a digest: unknown, so nothing is cached.
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

    Only latents stay in memory, not pixels. The cache returns bit-identical results of earlier
    runs; each clip is cached as soon as it is encoded, so that a cancel loses none.

    Args:
        encode: `f h w 3` in 0..1 -> mean and std, `f c h w`, unscaled; called with a few frames
            at a time.
        embed: prompts -> `1 n d` each; called with one prompt at a time, so that its embedding does
            not depend on others.
        on_clip: called with (clips done, number of clips, whether this one was cached).
        scale: of the model's latents.

    Raises:
        ClipError: the VAE returned NaN for a clip, or a clip cannot be read.
    """
    copies = [(False, copy) for copy in range(1, clips.settings.copies + 1)]
    kinds = [(False, 0), *([(True, 0)] if clips.settings.flip else []), *copies]
    posteriors: dict[tuple[bool, int], list[Posterior]] = {kind: [] for kind in kinds}
    for number in range(len(clips)):
        found = [_posterior(clips, number, *kind, encode, cache) for kind in kinds]
        for kind, (tensors, _) in zip(kinds, found, strict=True):
            posteriors[kind].append(Posterior(**tensors))
        on_clip(number + 1, len(clips), all(cached for _, cached in found))
    prompts = dict.fromkeys([*clips.captions, ""])  # samples use the empty prompt for guidance
    text = {prompt: _embedding(prompt, embed, cache) for prompt in prompts}
    plain, mirrored = posteriors[False, 0], posteriors.get((True, 0), [])
    return LatentClips(clips, plain, mirrored, text, scale, [posteriors[kind] for kind in copies])


def _posterior(
    clips: ClipSet,
    number: int,
    mirrored: bool,
    copy: int,
    encode: EncodePosterior,
    cache: LatentCache | None,
) -> Found:
    def compute() -> dict[str, Tensor]:
        chunks = clips.chunks(number, mirrored=mirrored, copy=copy)
        parts = [encode(chunk.float() / 255) for chunk in chunks]
        posterior = Posterior(*(torch.cat(each) for each in zip(*parts, strict=True)))
        return vars(_finite(posterior, clips.infos[number].name))

    if cache is None or cache.vae is None:
        return Found(compute(), False)
    name = entry_name("posterior", clips.key(number, copy), mirrored, cache.vae)
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
            f"The VAE returned NaN for the clip '{clip}'. SD 1.x VAEs can overflow in fp16: start "
            "ComfyUI with --fp32-vae, or use another VAE."
        )
    return posterior
