"""A motion, everything that LAMP learns, as one module; and attaching motions to a UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused, master_weights
from .architecture import SiteMap
from .attention import first_frame_kv
from .layers import MotionConv, TemporalAttention, add_residual, initialise, initialise_attention
from .layout import FrameLayout
from .masks import MotionMask
from .overrides import Hooks, Replaced

# The trained parameters (paper sec. 4.1); norm_temp is new too, but keeps its initial values.
TRAINED = ("conv1d", "conv_gate", "attn_temp", "attn1.to_q")
GROUPNORM_MODES = ("pooled", "frame")
# Tokens from which adding two matrices is faster than a second product.
_MERGED_FROM = 256


class Motion(nn.Module):
    """The learned parts for one UNet.

    State dict keys are canonical: `SITE.conv1d.weight`, `SITE.conv_gate.bias`,
    `BLOCK.attn_temp.to_q.weight`, `BLOCK.norm_temp.weight`, and `BLOCK.attn1.to_q.weight`, which is
    the CHANGE of the image model's query, so that a motion transfers to other checkpoints.

    Args:
        sites: the map of the UNet.
        ops: layer classes; those of ComfyUI, or by default `master_weights`.
        factory: `dtype` and `device` of the parameters.
    """

    def __init__(self, sites: SiteMap, ops: Any = master_weights, **factory: Any) -> None:
        super().__init__()
        self.sites = sites
        for site in sites.convs:
            _add_at(self, site.name, MotionConv(site.channels, ops, **factory))
        for block in sites.blocks:
            attention = TemporalAttention(block.channels, block.heads, ops, **factory)
            query = ops.Linear(block.channels, block.channels, bias=False, **factory)
            _add_at(self, f"{block.name}.attn_temp", attention)
            _add_at(self, f"{block.name}.norm_temp", ops.LayerNorm(block.channels, **factory))
            _add_at(self, f"{block.name}.attn1.to_q", query)

    def initialise(self, seed: int = 0) -> Motion:
        """Zero-initialise (paper sec. 3.4): a new motion changes nothing, bit for bit."""
        generator = torch.Generator().manual_seed(seed)
        for site in self.sites.convs:
            initialise(self.get_submodule(site.name))
        for block in self.sites.blocks:
            parts = self.get_submodule(block.name)
            initialise_attention(parts.attn_temp, parts.norm_temp, generator)
            nn.init.zeros_(parts.attn1.to_q.weight)
        return self

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by canonical name (paper sec. 4.1)."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if any(f".{part}." in name for part in TRAINED)
        }

    @contextmanager
    def attached(
        self,
        unet: nn.Module,
        layout: FrameLayout,
        *,
        strength: float = 1.0,
        groupnorm: str = "pooled",
        first_frame: bool = True,
        motion_mask: MotionMask | None = None,
    ) -> Iterator[None]:
        """Attach this motion alone to `unet`; see `attached`."""
        active = ActiveMotion(self, strength, motion_mask)
        with attached(unet, [active], layout, groupnorm=groupnorm, first_frame=first_frame):
            yield


@dataclass(frozen=True)
class ActiveMotion:
    """A motion as it acts in a UNet.

    Args:
        strength: factor on every residual; 0 is the image model, 1 the motion as trained.
        motion_mask: a further factor per position and frame; None is 1 everywhere.
    """

    motion: Motion
    strength: float = 1.0
    motion_mask: MotionMask | None = None


def motion_masks_of(motions: Sequence[ActiveMotion]) -> list[MotionMask | None]:
    """The mask of each motion. Motions of strength 0 are left out if others act."""
    acting = [each for each in motions if each.strength] or motions
    return [each.motion_mask for each in acting]


# The layers of one site, each with its motion; and the factor of a motion on given tokens.
Layers = list[tuple[ActiveMotion, nn.Module]]
Factor = Callable[[ActiveMotion, Tensor], float | Tensor]


@contextmanager
def attached(
    unet: nn.Module,
    motions: Sequence[ActiveMotion],
    layout: FrameLayout,
    *,
    groupnorm: str = "pooled",
    first_frame: bool = True,
) -> Iterator[Hooks]:
    """Attach motions to `unet` by forward hooks (paper sec. 3.4), removed when the block ends.

    With several motions, each reads the output of the image model's own layer, as in its training,
    and their residuals are added.

    Args:
        unet: a UNet with the same site map as the motions.
        motions: at least one.
        layout: the layout of the batches to come; it may be changed between calls, and the motions
            act only while it is `active`.
        groupnorm: `pooled` (statistics over all frames of a video, as the official code) or
            `frame`.
        first_frame: keys and values from frame 1 (paper eq. 5).

    Yields:
        the hooks, which tell whether they are intact.
    """
    sites = motions[0].motion.sites
    # One table of modules is much faster than a search for every name.
    host = dict(unet.named_modules())
    active = [(each, dict(each.motion.named_modules())) for each in motions if each.strength]

    def layers(site: str) -> Layers:
        return [(motion, parts[site]) for motion, parts in active]

    with Hooks() as hooks:
        if groupnorm == "pooled":
            for norm in sites.norms:
                _join_silu(host.get(norm.module.removesuffix(".0")), layout, hooks)
                _pool_norm(host[norm.module], layout, hooks)
        for conv in sites.convs:
            _add_conv(host[conv.module], layers(conv.name), layout, hooks)
        for block in sites.blocks:
            factor = _token_factor(host[block.module.rsplit(".", 2)[0]], layout, hooks)
            _add_block(host[block.module], layers(block.name), factor, layout, hooks)
            if first_frame:
                first_frame_kv(host[f"{block.module}.attn1"], layout, hooks)
        yield hooks


def _add_conv(conv: nn.Module, layers: Layers, layout: FrameLayout, hooks: Hooks) -> None:
    def motion(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        if not layout.active:
            return y
        layout.check(y)
        if layout.without_motion:
            return y
        out = y
        for active, layer in layers:
            factor = active.strength * layout.motion_scale(y)
            if active.motion_mask is not None:
                factor = active.motion_mask.for_features(y, layout) * factor
            out = layer(y, layout.frames, factor, out)
        return out

    hooks.callback(conv.register_forward_hook(motion).remove)


def _add_block(
    block: nn.Module, layers: Layers, factor: Factor, layout: FrameLayout, hooks: Hooks
) -> None:
    def temporal_attention(_: nn.Module, args: tuple[Any, ...], x: Tensor) -> Tensor:
        if not layout.active or layout.without_motion:
            return x
        out = x
        for active, parts in layers:
            residual = parts.attn_temp(parts.norm_temp(x), layout.frames)
            out = add_residual(out, residual, factor(active, x))
        return out

    queries = [(each, parts.attn1.to_q) for each, parts in layers]
    _tune_query(block.attn1.to_q, queries, factor, layout, hooks)
    hooks.callback(block.register_forward_hook(temporal_attention).remove)


def _tune_query(
    to_q: nn.Module, layers: Layers, factor: Factor, layout: FrameLayout, hooks: Hooks
) -> None:
    """Add the trained changes to a query projection: to its weight if one change holds for all
    tokens, so that no second product is needed, else to its output."""
    plain = "forward" not in vars(to_q)  # other code in the layer may use the weight twice

    def merged(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        for active, layer in layers:
            changed = _changed(weight, layer, x, active.strength)
            if changed is None:
                return NotImplemented
            weight = changed
        return F.linear(x, weight, bias)

    def make(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def forward(x: Tensor) -> Tensor:
            if not layers or not layout.active or layout.without_motion:
                return own(x)
            if plain and _is_mergeable(x, layers, layout):
                with Replaced(F.linear, merged) as replaced:
                    out = own(x)
                if replaced.answered:
                    return out
            else:
                out = own(x)
            q = layout.apart(out)
            for active, layer in layers:
                q = add_residual(q, layout.apart(layer(x)), factor(active, q))
            return q.reshape(out.shape)

        return forward

    hooks.wrap_forward(to_q, make)


def _is_mergeable(x: Tensor, layers: Layers, layout: FrameLayout) -> bool:
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and layout.motion_scales is None
        and all(each.motion_mask is None or each.motion_mask.is_identity for each, _ in layers)
        and x.numel() >= _MERGED_FROM * x.shape[-1]
    )


def _changed(weight: Tensor, layer: nn.Module, x: Tensor, strength: float) -> Tensor | None:
    """The weight of the host's layer, as cast and patched in this call, plus that of a motion's
    layer times `strength`; None if one of them is not a plain matrix."""

    def add(_: Tensor, change: Tensor, bias: Tensor | None = None) -> Tensor:
        if not (_is_plain(weight) and _is_plain(change) and weight.shape == change.shape):
            return NotImplemented
        return torch.add(weight, change.to(weight.dtype), alpha=strength)

    with Replaced(F.linear, add) as replaced:
        out: Tensor = layer(x)
    return out if replaced.answered else None


def _is_plain(weight: Tensor) -> bool:
    """Whether it is no packed tensor of another library (GGUF, fp8 with scales)."""
    return weight.is_floating_point() and type(weight).__module__.partition(".")[0] == "torch"


def _token_factor(transformer: nn.Module, layout: FrameLayout, hooks: Hooks) -> Factor:
    """The factor for tokens of a spatial transformer; its input shows the size of their grid."""
    size = [0, 0]

    def see(_: nn.Module, args: tuple[Any, ...]) -> None:
        size[:] = args[0].shape[-2:]

    def factor(active: ActiveMotion, x: Tensor) -> float | Tensor:
        scaled = active.strength * layout.motion_scale(x)
        if active.motion_mask is None:
            return scaled
        return active.motion_mask.for_tokens(x, layout, (size[0], size[1])) * scaled

    hooks.callback(transformer.register_forward_pre_hook(see).remove)
    return factor


def _pool_norm(norm: nn.Module, layout: FrameLayout, hooks: Hooks) -> None:
    """Let a GroupNorm take mean and variance over f, h, w (official code)."""

    def make(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if not layout.active:
                return own(x)
            layout.check(x)
            out = _fused_norm(own, x, layout)
            if out is not None:
                return out
            video = x.unflatten(0, (-1, layout.frames)).transpose(1, 2)
            return own(video).transpose(1, 2).flatten(0, 1)

        return forward

    hooks.wrap_forward(norm, make)


def _join_silu(sequence: nn.Module | None, layout: FrameLayout, hooks: Hooks) -> None:
    """Where a pooled norm and a SiLU start a sequence (in ComfyUI all do), let one kernel compute
    both. Call it before `_pool_norm`."""
    if not isinstance(sequence, nn.Sequential) or len(sequence) < 2:
        return
    norm, silu, *rest = sequence
    others = type(sequence) is not nn.Sequential or type(silu) is not nn.SiLU
    if others or "forward" in vars(norm) or "forward" in vars(silu):
        return  # other code takes part
    plain = norm.forward

    def make(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            out = None
            if layout.active and not (_is_watched(norm) or _is_watched(silu)):
                layout.check(x)
                out = _fused_norm(plain, x, layout, silu=True)
            if out is None:
                return own(x)
            for module in rest:
                out = module(out)
            return out

        return forward

    hooks.wrap_forward(sequence, make)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fused_norm(
    own: Callable[[Tensor], Tensor], x: Tensor, layout: FrameLayout, silu: bool = False
) -> Tensor | None:
    """The pooled norm of x by the fused kernel, with the weights of the host's layer as cast and
    patched in this call; None where the kernel cannot be used."""

    def pooled(
        x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        if weight is None or bias is None or not x.is_contiguous():
            return NotImplemented
        given = (layout.frames, groups, weight.to(x.dtype), bias.to(x.dtype), eps, silu)
        out = fused.attempt("pooled_norm", x, *given)
        return NotImplemented if out is None else out

    if not fused.ready(x):
        return None
    with Replaced(F.group_norm, pooled) as replaced:
        out = own(x)
    return out if replaced.answered else None


def _add_at(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add `module` at the dotted `name` below `root`, so that state dict keys are canonical."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, module)
