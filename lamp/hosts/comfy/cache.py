"""Where ComfyUI keeps encoded clips and prompts between runs, and what its models are known by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files.cache import TensorCache, digest
from ...plain import log
from ...training.latents import LatentCache
from .binding import unpatched_weights


def latent_cache(vae: Any, clip: Any, pooled: bool = False) -> LatentCache:
    """The cache for what a VAE and a CLIP of the host make; neither is loaded for it.

    Args:
        pooled: the embeddings hold the pooled one, too (`lamp.method.prompts`).
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

    `temp` is emptied when the server starts, `output` is where people look for their results, and
    a model folder would list it as models. The user folder outlasts restarts and updates and moves
    with --base-directory and --user-directory; `__` is how the host marks folders in it that no
    browser may read.
    """
    import folder_paths

    return Path(folder_paths.get_user_directory(), "__lamp_cache")


def vae_digest(vae: Any) -> str | None:
    """A digest of what a VAE's posteriors depend on; None where that cannot be told."""
    return _model_digest(vae.patcher, vae.vae_dtype, vae.downscale_ratio)


def clip_digest(clip: Any) -> str | None:
    """A digest of what a CLIP's embeddings depend on besides the tokens: weights, LoRAs, clip
    skip; None where that cannot be told."""
    return _model_digest(clip.patcher, type(clip.tokenizer).__qualname__, clip.layer_idx)


def prompt_digest(clip: Any, prompt: str, text_encoder: str | None) -> str | None:
    """A digest of a prompt's tokens and the text encoder's own, see `clip_digest`.

    The tokens hold what the text alone does not tell: the vectors of `embedding:name`, read from
    files that may change under their names.
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
            raise TypeError("code is hooked into it")
        # CPU and GPU round differently: what one made is not what the other would.
        device = patcher.load_device.type
        # Some hosts set precisions by object patches.
        parts = _plain([*settings, patcher.object_patches, patcher.patches])
        return digest(kind, device, parts, unpatched_weights(patcher))
    except (TypeError, RuntimeError) as reason:  # the latter of weights that cannot be read
        log.info("what %s encodes is not kept for the next run: %s", kind, reason)
        return None


def _plain(patch: Any) -> Any:
    """A patch or a setting as lists, numbers, texts and tensors.

    The host's adapters (LoRA and its kin) are objects with `weights`.
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
