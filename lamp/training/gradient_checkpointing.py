"""Gradient checkpointing: activations are recomputed in the backward pass instead of saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from ..method.motion import Motion


@contextlib.contextmanager
def checkpointed(unet: nn.Module, motion: Motion, resamplers: bool = False) -> Iterator[None]:
    """Recompute residual blocks and transformers in the backward pass. Hooks cannot do that, so
    their `forward` is wrapped inside the `with` block.

    Args:
        resamplers: recompute down- and upsampling too. That takes 3 % more operations, and saves
            memory only if the gradients are not there all together (`lamp.training.early_updates`).

    A transformer includes its norm and projections, which hold more than its blocks do, as they are
    sites of the motion.
    """
    from torch.utils.checkpoint import checkpoint

    def wrap(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, **kwargs)

    sites = motion.sites
    # One transformer may have several blocks.
    transformers = dict.fromkeys(block.module.rsplit(".", 2)[0] for block in sites.blocks)
    samplers = [conv.module.rsplit(".", 1)[0] for conv in sites.convs if "samplers." in conv.name]
    names = (*sites.resnets, *transformers, *(samplers if resamplers else ()))
    blocks = [unet.get_submodule(name) for name in names]
    own = [block.__dict__.get("forward") for block in blocks]  # such as that of accelerate's hooks
    try:
        for block in blocks:
            block.forward = wrap(block.forward)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward
