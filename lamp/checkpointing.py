"""Gradient checkpointing: activations are computed twice instead of being kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from .motion import Motion


@contextlib.contextmanager
def checkpointed(unet: nn.Module, motion: Motion) -> Iterator[None]:
    """Recompute the residual and transformer blocks in the backward pass instead of keeping their
    activations. Hooks cannot do that, so the blocks' `forward` is wrapped while the block lasts."""
    from torch.utils.checkpoint import checkpoint

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    sites = motion.sites
    names = [*sites.resnets, *(block.module for block in sites.blocks)]
    blocks = [unet.get_submodule(name) for name in names]
    try:
        for block in blocks:
            block.forward = wrap(block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
