"""Tune-A-Video (Wu et al. 2023): one clip teaches its motion.

Spatial self-attention becomes sparse causal: frame i attends to frame 1 and to the one before it,

    Attention(Q^i, [K^1, K^{i-1}], [V^1, V^{i-1}]),

where frame 1 attends to itself. A temporal self-attention with an output of zero comes last in each
block. Trained: the queries of spatial self-attention and of cross-attention, and the temporal
attention. All frames are noise and count in the loss. To generate, the source clip is inverted to
noise by DDIM with the tuned model and no prompt, and drawn again with the new prompt.

The first frame is not given: it comes from the prompt and the source clip's noise. Group norms are
pooled over frames, as in LAMP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.toy.runs import Recipe
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import SiteMap
from lamp.method.inversion import invert
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.toy.base import ToyBase

from .denoising import denoise


class TuneAVideo(Motion):
    """LAMP's temporal attention and tuned queries, which are Tune-A-Video's, without motion
    convolutions; and the tuned queries of cross-attention, as changes."""

    def __init__(self, sites: SiteMap, ops: Any = nn, **factory: Any) -> None:
        super().__init__(replace(sites, convs=()), ops, **factory)
        for block in sites.blocks:
            parts = self.get_submodule(block.name)
            parts.add_module("attn2", nn.Module())
            query = ops.Linear(block.channels, block.channels, bias=False, **factory)
            parts.attn2.add_module("to_q", query)

    def initialise(self, seed: int = 0) -> Motion:
        for block in self.sites.blocks:
            nn.init.zeros_(self.get_submodule(f"{block.name}.attn2.to_q").weight)
        return super().initialise(seed)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        crossing = {n: p for n, p in self.named_parameters() if ".attn2.to_q." in n}
        return super().trained_parameters() | crossing

    @contextmanager
    def attached(self, unet: nn.Module, layout: FrameLayout, **options: Any) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().attached(unet, layout, **options, first_frame=False))
            for block in self.sites.blocks:
                host = unet.get_submodule(block.module)
                sparse_causal(host.attn1, layout, stack)
                change = self.get_submodule(f"{block.name}.attn2.to_q")
                hook = host.attn2.to_q.register_forward_hook(_adder(change))
                stack.callback(hook.remove)
            yield


def _adder(change: nn.Module) -> Any:
    return lambda _, args, out: out + change(args[0])


def sparse_causal(attn1: nn.Module, layout: FrameLayout, stack: ExitStack) -> None:
    """Give each frame of `attn1` the keys and values of frames 1 and i - 1, of which frame 1 has
    its own twice."""

    def widen(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        video = out.unflatten(0, (layout.videos, layout.frames))
        first = video[:, :1].expand_as(video)
        before = torch.cat([video[:, :1], video[:, :-1]], dim=1)
        return torch.cat([first, before], dim=2).flatten(0, 1)

    for projection in (attn1.to_k, attn1.to_v):
        stack.callback(projection.register_forward_hook(widen).remove)


def videos_like(
    toy: ToyBase,
    tuned: TuneAVideo,
    recipe: Recipe,
    source: Any,
    prompts: list[str],
    steps: int,
    guidance: float,
) -> Tensor:
    """Latents `(b f) c h w` of one video per prompt, from the inverted frames of the source clip.

    Args:
        source: the clip that it was tuned on, `f h w 3` in bytes.
        steps: of inversion and of sampling.
    """
    host, empty = DiffusersHost(toy.unet), toy.encode_text([""])
    noise = invert(host, tuned, toy.encode(source), empty, steps=steps, groupnorm=recipe.groupnorm)
    many = len(prompts)
    return denoise(
        host,
        lambda layout: tuned.attached(toy.unet, layout, groupnorm=recipe.groupnorm),
        noise.repeat(many, 1, 1, 1),
        toy.encode_text(prompts),
        empty.expand(many, -1, -1),
        guidance,
        steps,
    )
