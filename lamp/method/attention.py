"""First-frame keys and values in spatial self-attention (paper eq. 5), and attention over frames.

    Attention(Q^i, K^1, V^1) = softmax(Q^i (K^1)^T / sqrt(d)) V^1

All frames of a video have the same keys, so their queries are one long sequence: `attn1` gets the
tokens `(b f) n c` as `b (f n) c`, and its projections `to_k` and `to_v` get frame 1 only. Nothing
is copied, and the host's attention is unchanged. Where other code takes part in the attention, the
batch keeps its shape, and the output of `to_k` and `to_v` is expanded to all frames.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layout import FrameLayout

# CUDA kernels put the sequences on a grid axis of at most 65,535.
_MAX_SEQUENCES = 32768
# Fused kernels work on tiles of 64 to 128 tokens, and their backward pass has memory for whole
# tiles. Up to this number of tokens the scores are no larger than queries and keys, and plain
# products are faster on GPUs, and with gradients on every device.
_FEW_TOKENS = 32
_PRODUCTS_ON = ("cuda", "meta")  # meta stands for a GPU


def attend_frames(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of many short sequences, `b s f d` with s sequences of f tokens."""
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention
    if q.shape[2] <= _FEW_TOKENS:
        if torch.is_grad_enabled() and q.requires_grad:
            attend = _plain_attention
        elif q.device.type in _PRODUCTS_ON:
            attend = _plain_attention_in_place
    if q.shape[1] <= _MAX_SEQUENCES:
        return attend(q, k, v)
    parts = (t.split(_MAX_SEQUENCES, dim=1) for t in (q, k, v))
    return torch.cat([attend(*part) for part in zip(*parts, strict=True)], dim=1)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    shape = q.shape
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    return torch.bmm(_weights(q, k), v).view(shape)


def _plain_attention_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each video by itself, as the sequences of one are a view of its projections, and into the
    memory layout of `q`, so that nothing is copied; no gradient."""
    out = torch.empty_like(q)
    for query, key, value, result in zip(q, k, v, out, strict=True):
        torch.bmm(_weights(query, key), value, out=result)
    return out


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax of the scores; the product scales its result before rounding it."""
    nothing = q.new_zeros(())  # Apple's GPUs read it even with beta 0, in PyTorch up to 2.13
    scores = torch.baddbmm(nothing, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1)


def first_frame_kv(attn1: nn.Module, layout: FrameLayout, stack: ExitStack) -> None:
    """Let the self-attention `attn1` take its keys and values from frame 1 (paper eq. 5)."""

    def join(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not layout.active or layout.frames == 1:
            return None
        layout.check(args[0])
        if not _is_alone(args, kwargs, layout):
            return None
        joined = args[0].unflatten(0, (layout.videos, layout.frames)).flatten(1, 2)
        return (joined, *args[1:]), kwargs

    def part(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return layout.apart(out) if layout.active else out

    stack.callback(attn1.register_forward_pre_hook(join, with_kwargs=True).remove)
    stack.callback(attn1.register_forward_hook(part).remove)
    for projection in (attn1.to_k, attn1.to_v):
        _project_first(projection, layout, stack)


def _project_first(projection: nn.Module, layout: FrameLayout, stack: ExitStack) -> None:
    joined = False

    def keep_first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        nonlocal joined
        if not layout.active:
            return None
        x = args[0]
        joined = layout.frames > 1 and len(x) == layout.videos
        if joined:
            return (x.unflatten(1, (layout.frames, -1))[:, 0],)
        # Patches that tile tokens put the tiles after the frame axis: ((b f t) n c).
        return (layout.split(x)[:, 0].flatten(0, 1),)

    def expand(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        if not layout.active or joined:
            return out
        video = out.unflatten(0, (layout.videos, 1, -1))
        return video.expand(-1, layout.frames, -1, -1, -1).flatten(0, 2)

    stack.callback(projection.register_forward_pre_hook(keep_first).remove)
    stack.callback(projection.register_forward_hook(expand).remove)


def _is_alone(args: tuple[Any, ...], kwargs: dict[str, Any], layout: FrameLayout) -> bool:
    """Whether nothing else takes part in a call of `attn1`: keys or a mask from patches, or a
    replaced attention, which may depend on the shape of the tokens."""
    given = (*args[1:], *kwargs.values())
    if len(args[0]) != layout.videos * layout.frames or any(isinstance(v, Tensor) for v in given):
        return False
    options = kwargs.get("transformer_options") or {}
    return options.get("optimized_attention_override", torch_attention) is torch_attention


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
