"""Comparisons of single layers, built from the host's own classes with this project's hooks."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lamp.method.architecture import BlockSite, ConvSite, NormSite, SiteMap
from lamp.method.attention import first_frame_kv
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion

from .fixtures import Fixture, Measure, relative, split_official, to_frames, to_video

FORWARD = 2e-5
# The fixture does not record how many heads and groups its small layers have. A wrong number is
# far off, so the one that fits is the right one.
COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Unit:
    """One layer of the official code: its state (frames on the third axis), inputs, output."""

    state: dict[str, Tensor]
    inputs: list[Tensor]
    out: Tensor
    frames: int

    @property
    def videos(self) -> int:
        x = self.inputs[0]
        return x.shape[0] if x.ndim == 5 else x.shape[0] // self.frames

    def frame_inputs(self) -> list[Tensor]:
        """The inputs with one row per frame, as this project lays them out."""
        rows = [to_frames(x) if x.ndim == 5 else x for x in self.inputs]
        return [
            x.repeat_interleave(self.frames, 0) if len(x) == self.videos != len(rows[0]) else x
            for x in rows
        ]


class _Holder(nn.Module):
    """Takes the place of a UNet for a motion; the layer is its child `part`."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


def units(host: str, fixture: Fixture) -> Iterator[Measure]:
    """Every layer class that the host can build with any number of groups."""
    found = re.search(r"video_length (\d+)", fixture.info.get("note", ""))
    frames = int(found[1]) if found else 5
    for case, about in fixture.info["cases"].items():
        given = fixture.prefixed(case)
        inputs = [given[key] for key in sorted(given) if re.fullmatch(r"in\d+", key)]
        state = {f"part.{k[3:]}": value for k, value in given.items() if k.startswith("sd.")}
        if (layer := _LAYERS[host].get(about["cls"])) is not None:
            yield _measure(case, Unit(state, inputs, given["out"], frames), *layer)


def _measure(case: str, unit: Unit, path: str, arguments: Arguments) -> Measure:
    module, _, name = path.rpartition(".")
    layer, errors = getattr(importlib.import_module(module), name), []
    for heads, groups in product(COUNTS, COUNTS):
        with suppress(AssertionError, ValueError):  # that many do not divide the channels
            part = layer(**arguments(unit, heads, groups))
            errors.append(relative(_run(unit, _Holder(part)), unit.out))
    return Measure(case, min(errors), FORWARD)


@torch.no_grad()
def _run(unit: Unit, holder: _Holder) -> Tensor:
    base, learned = split_official(unit.state)
    # ComfyUI calls a downsampler's convolution `op`.
    host_names = {"part.conv": "part.op"} if hasattr(holder.part, "op") else {}
    renamed = {}
    for key, value in base.items():
        module, _, parameter = key.rpartition(".")
        renamed[f"{host_names.get(module, module)}.{parameter}"] = value
    holder.load_state_dict(renamed)
    motion = Motion(_sites(learned, holder, host_names))
    motion.load_state_dict(learned)
    layout = FrameLayout(unit.frames, unit.videos)
    with ExitStack() as stack:
        stack.enter_context(motion.attached(holder, layout))
        if hasattr(holder.part, "to_k"):  # an attention without its block
            first_frame_kv(holder.part, layout, stack)
        out = _call(holder.part, unit.frame_inputs())
    return to_video(out, unit.videos) if unit.out.ndim == 5 else out


def _sites(learned: dict[str, Tensor], holder: _Holder, host_names: dict[str, str]) -> SiteMap:
    convs, blocks = [], []
    for key, value in learned.items():
        name, _, rest = key.partition(".conv1d.weight")
        if not rest and name != key:
            convs.append(ConvSite(name, host_names.get(name, name), len(value)))
        if key.endswith(".attn1.to_q.weight"):
            name = key.removesuffix(".attn1.to_q.weight")
            heads = holder.get_submodule(f"{name}.attn1").heads
            blocks.append(BlockSite(name, name, len(value), heads))
    norms = [
        NormSite(name, name)
        for name, module in holder.named_modules()
        if isinstance(module, nn.GroupNorm) and name in ("part.norm1", "part.norm2")
    ]
    return SiteMap(tuple(convs), tuple(blocks), tuple(norms), resnets=(), family="")


def _call(part: nn.Module, inputs: list[Tensor]) -> Tensor:
    x, *more = inputs
    if type(part).__name__ == "Transformer2DModel":
        return part(x, encoder_hidden_states=more[0], return_dict=False)[0]
    if type(part).__name__ == "BasicTransformerBlock":
        keyword = "context" if "comfy" in type(part).__module__ else "encoder_hidden_states"
        return part(x, **{keyword: more[0]})
    return part(x, *more)


# --- constructor arguments of a unit's layer, from (unit, heads, groups) --------------------------

Arguments = Callable[[Unit, int, int], dict[str, Any]]


def _conv(unit: Unit, heads: int, groups: int) -> dict[str, Any]:
    out, given, kernel = unit.state["part.conv2d.weight"].shape[:3]
    stride = round(unit.inputs[0].shape[-1] / unit.out.shape[-1])
    sizes = {"in_channels": given, "out_channels": out, "kernel_size": kernel}
    return {**sizes, "stride": stride, "padding": kernel // 2}


def _resnet(unit: Unit, heads: int, groups: int) -> dict[str, Any]:
    width, given = unit.state["part.conv1.conv2d.weight"].shape[:2]
    sizes = {"in_channels": given, "out_channels": width, "temb_channels": unit.inputs[1].shape[-1]}
    return {**sizes, "groups": groups, "eps": 1e-5}


def _resampler(unit: Unit, heads: int, groups: int) -> dict[str, Any]:
    return {"channels": len(unit.state["part.conv.conv2d.weight"]), "use_conv": True}


def _attention(unit: Unit, heads: int, groups: int) -> dict[str, Any]:
    width = unit.inputs[0].shape[-1]
    return {"query_dim": width, "heads": heads, "dim_head": _split(width, heads)}


def _block(names: tuple[str, str, str, str]) -> Arguments:
    def arguments(unit: Unit, heads: int, groups: int) -> dict[str, Any]:
        width, text = (x.shape[-1] for x in unit.inputs[:2])
        return dict(zip(names, (width, heads, _split(width, heads), text), strict=True))

    return arguments


def _transformers(unit: Unit, heads: int, groups: int) -> dict[str, Any]:
    width, text = unit.inputs[0].shape[1], unit.inputs[1].shape[-1]
    return {
        "num_attention_heads": heads, "attention_head_dim": _split(width, heads),
        "in_channels": width, "cross_attention_dim": text, "norm_num_groups": groups,
    }  # fmt: skip


def _split(width: int, heads: int) -> int:
    if width % heads:
        raise ValueError(f"{heads} heads do not divide {width} channels")
    return width // heads


_DIFFUSERS, _COMFY = "diffusers.models", "comfy.ldm.modules"
_BLOCK_NAMES = ("dim", "num_attention_heads", "attention_head_dim", "cross_attention_dim")
_COMFY_BLOCK_NAMES = ("dim", "n_heads", "d_head", "context_dim")
_CONV = ("torch.nn.Conv2d", _conv)
_LAYERS: dict[str, dict[str, tuple[str, Arguments]]] = {
    "diffusers": {
        "InflatedConv3d": _CONV,
        "ResnetBlock3D": (f"{_DIFFUSERS}.resnet.ResnetBlock2D", _resnet),
        "Downsample3D": (f"{_DIFFUSERS}.downsampling.Downsample2D",
                         lambda *unit: {**_resampler(*unit), "name": "op"}),
        "Upsample3D": (f"{_DIFFUSERS}.upsampling.Upsample2D", _resampler),
        "SparseCausalAttention": (f"{_DIFFUSERS}.attention_processor.Attention", _attention),
        "BasicTransformerBlock": (f"{_DIFFUSERS}.attention.BasicTransformerBlock",
                                  _block(_BLOCK_NAMES)),
        "Transformer3DModel": (f"{_DIFFUSERS}.transformers.transformer_2d.Transformer2DModel",
                               _transformers),
    },
    # GroupNorms of ComfyUI's residual blocks and spatial transformers always have 32 groups.
    "comfy": {
        "InflatedConv3d": _CONV,
        "Downsample3D": (f"{_COMFY}.diffusionmodules.openaimodel.Downsample", _resampler),
        "Upsample3D": (f"{_COMFY}.diffusionmodules.openaimodel.Upsample", _resampler),
        "SparseCausalAttention": (f"{_COMFY}.attention.CrossAttention", _attention),
        "BasicTransformerBlock": (f"{_COMFY}.attention.BasicTransformerBlock",
                                  _block(_COMFY_BLOCK_NAMES)),
    },
}  # fmt: skip
