"""The cache of encoded clips and prompts in ComfyUI, and digests that identify its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files.cache import TensorCache, digest
from ...plain import log
from ...training.latents import LatentCache
from .binding import unpatched_weights


def latent_cache(vae: Any, clip: Any, pooled: bool = False) -> LatentCache:
    """The cache for the outputs of a VAE and a CLIP of ComfyUI; neither is loaded for it.

    Args:
        pooled: embeddings include the pooled one (`lamp.method.prompts`).
    """
    text_encoder = clip_digest(clip)
    if pooled and text_encoder is not None:
        text_encoder = digest(text_encoder, "pooled")
    return LatentCache(
        TensorCache(cache_folder()),
        vae_digest(vae),
        lambda prompt: prompt_digest(clip, prompt, text_encoder),
    )


def cache_folder() -> Path:
    """`user/__lamp_cache` below ComfyUI's base folder.

    ComfyUI empties `temp` at start, `output` is for results, and model folders are listed as
    models. The user folder survives restarts and updates and follows --base-directory and
    --user-directory. The prefix `__` hides a folder in it from browsers.
    """
    import folder_paths

    return Path(folder_paths.get_user_directory(), "__lamp_cache")


def vae_digest(vae: Any) -> str | None:
    """A digest of everything that a VAE's posteriors depend on; None if it cannot be determined."""
    return _model_digest(vae.patcher, vae.vae_dtype, vae.downscale_ratio)


def clip_digest(clip: Any) -> str | None:
    """A digest of what a CLIP's embeddings depend on besides tokens: weights, LoRAs, clip skip;
    None if it cannot be determined."""
    return _model_digest(clip.patcher, type(clip.tokenizer).__qualname__, clip.layer_idx)


def prompt_digest(clip: Any, prompt: str, text_encoder: str | None) -> str | None:
    """A digest of a prompt's tokens and of the text encoder (`clip_digest`).

    The tokens include what the text does not show: the vectors of `embedding:name`, read from
    files whose content may change.
    """
    if text_encoder is None:
        return None
    try:
        return digest(text_encoder, clip.tokenize(prompt))
    except TypeError:
        return None


def _model_digest(patcher: Any, *settings: Any) -> str | None:
    kind = type(patcher.model).__qualname__
    foreign = (
        patcher.weight_wrapper_patches,
        patcher.hook_patches,
        patcher.forced_hooks,
        patcher.injections,
    )
    try:
        if any(foreign):
            raise TypeError("other code is hooked into it")
        # CPU and GPU round differently.
        device = patcher.load_device.type
        # Some versions set precisions by object patches.
        parts = _plain([*settings, patcher.object_patches, patcher.patches])
        return digest(kind, device, parts, unpatched_weights(patcher))
    except (TypeError, RuntimeError) as reason:  # the latter of weights that cannot be read
        log.info("encodings of %s are not cached: %s", kind, reason)
        return None


def _plain(patch: Any) -> Any:
    """A patch or setting as lists, numbers, strings and tensors.

    ComfyUI's adapters (LoRA and others) are objects with `weights`.
    """
    import torch

    if isinstance(patch, dict):
        return {name: _plain(part) for name, part in patch.items()}
    if isinstance(patch, (list, tuple)):
        return [_plain(part) for part in patch]
    if isinstance(patch, torch.dtype):
        return str(patch)
    if hasattr(patch, "weights"):
        return [type(patch).__qualname__, _plain(patch.weights)]
    return patch
