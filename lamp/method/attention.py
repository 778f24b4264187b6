"""First-frame keys and values in spatial self-attention (paper eq. 5).

    Attention(Q^i, K^1, V^1) = softmax(Q^i (K^1)^T / sqrt(d)) V^1

The projections `attn1.to_k` and `attn1.to_v` get frame 1 only, and their output is expanded to all
frames. They run once per video, and the host's attention itself is unchanged.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layout import FrameLayout


def first_frame_kv(attn1: nn.Module, layout: FrameLayout, stack: ExitStack) -> None:
    """Let the self-attention `attn1` take its keys and values from frame 1 (paper eq. 5)."""

    def keep_first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        # Patches that tile tokens put the tiles after the frame axis: ((b f t) n c).
        return (layout.split(args[0])[:, 0].flatten(0, 1),)

    def expand(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        video = out.unflatten(0, (layout.videos, 1, -1))
        return video.expand(-1, layout.frames, -1, -1, -1).flatten(0, 2)

    for projection in (attn1.to_k, attn1.to_v):
        stack.callback(projection.register_forward_pre_hook(keep_first).remove)
        stack.callback(projection.register_forward_hook(expand).remove)


def torch_attention(
    _: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *__: Any,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **___: Any,
) -> Tensor:
    """PyTorch's attention as ComfyUI's `optimized_attention_override`.

    It has a gradient on every device, unlike some kernels that ComfyUI selects for sampling.

    Args:
        q, k, v: `b n (h d)`, with `skip_reshape` `b h n d`.
        mask: added to the scores, `n m` or `b n m` (one for all heads) or `b h n m`.

    Returns:
        `b n (h d)`, with `skip_output_reshape` `b h n d`.
    """
    if not skip_reshape:
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)
