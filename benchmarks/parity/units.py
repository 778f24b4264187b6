"""The cases about single layers, built from the host's own modules under this project's hooks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from lamp.method.architecture import BlockSite, ConvSite, NormSite, SiteMap
from lamp.method.attention import first_frame_kv
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion

from .fixtures import Fixture, Measure, relative, split_official, to_frames, to_video

FORWARD = 2e-5
# The fixture does not say how many heads and groups its small layers have. A wrong number is far
# off, so the right one is the one that fits.
COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Unit:
    """One layer of the official code: its state (frames in the third axis), inputs, output."""

    state: dict[str, Tensor]
    inputs: list[Tensor]
    out: Tensor
    frames: int

    @property
    def videos(self) -> int:
        x = self.inputs[0]
        return x.shape[0] if x.ndim == 5 else x.shape[0] // self.frames

    def frame_inputs(self) -> list[Tensor]:
        """The inputs as this project lays them: a row for each frame."""
        rows = [to_frames(x) if x.ndim == 5 else x for x in self.inputs]
        return [
            x.repeat_interleave(self.frames, 0) if len(x) == self.videos != len(rows[0]) else x
            for x in rows
        ]


Builder = Callable[[Unit, int, int], nn.Module]


class _Holder(nn.Module):
    """Stands where a motion expects a UNet; the layer is its child `part`."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


def units(host: str, fixture: Fixture) -> Iterator[Measure]:
    """Every layer class that the host builds with any number of groups."""
    found = re.search(r"video_length (\d+)", fixture.info.get("note", ""))
    frames = int(found[1]) if found else 5
    for case, about in fixture.info["cases"].items():
        given = fixture.prefixed(case)
        inputs = [given[key] for key in sorted(given) if re.fullmatch(r"in\d+", key)]
        state = {f"part.{k[3:]}": value for k, value in given.items() if k.startswith("sd.")}
        build = _BUILDERS[host].get(about["cls"])
        if build is not None:
            yield _measure(case, Unit(state, inputs, given["out"], frames), build)


def _measure(case: str, unit: Unit, build: Builder) -> Measure:
    errors = []
    for heads, groups in product(COUNTS, COUNTS):
        with suppress(AssertionError, ValueError):  # that many do not divide the channels
            errors.append(relative(_run(unit, _Holder(build(unit, heads, groups))), unit.out))
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
        if hasattr(holder.part, "to_k"):  # an attention on its own, without its block
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


def _conv(unit: Unit, heads: int, groups: int) -> nn.Module:
    weight = unit.state["part.conv2d.weight"]
    channels, given, kernel = weight.shape[:3]
    stride = round(unit.inputs[0].shape[-1] / unit.out.shape[-1])
    return nn.Conv2d(given, channels, kernel, stride, padding=kernel // 2)


def _resnet(unit: Unit, heads: int, groups: int) -> nn.Module:
    from diffusers.models.resnet import ResnetBlock2D

    width, given = unit.state["part.conv1.conv2d.weight"].shape[:2]
    temb = unit.inputs[1].shape[-1]
    return ResnetBlock2D(
        in_channels=given, out_channels=width, temb_channels=temb, groups=groups, eps=1e-5
    )


def _down(unit: Unit, heads: int, groups: int) -> nn.Module:
    from diffusers.models.downsampling import Downsample2D

    return Downsample2D(_width(unit), use_conv=True, name="op")


def _up(unit: Unit, heads: int, groups: int) -> nn.Module:
    from diffusers.models.upsampling import Upsample2D

    return Upsample2D(_width(unit), use_conv=True)


def _width(unit: Unit) -> int:
    return unit.state["part.conv.conv2d.weight"].shape[0]


def _attention(unit: Unit, heads: int, groups: int) -> nn.Module:
    from diffusers.models.attention_processor import Attention

    width = unit.inputs[0].shape[-1]
    return Attention(width, heads=heads, dim_head=_split(width, heads))


def _block(unit: Unit, heads: int, groups: int) -> nn.Module:
    from diffusers.models.attention import BasicTransformerBlock

    width, text = (x.shape[-1] for x in unit.inputs[:2])
    return BasicTransformerBlock(width, heads, _split(width, heads), cross_attention_dim=text)


def _transformers(unit: Unit, heads: int, groups: int) -> nn.Module:
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    width, text = unit.inputs[0].shape[1], unit.inputs[1].shape[-1]
    return Transformer2DModel(
        heads,
        _split(width, heads),
        in_channels=width,
        cross_attention_dim=text,
        norm_num_groups=groups,
    )


def _comfy_down(unit: Unit, heads: int, groups: int) -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample

    return Downsample(_width(unit), use_conv=True)


def _comfy_up(unit: Unit, heads: int, groups: int) -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample

    return Upsample(_width(unit), use_conv=True)


def _comfy_attention(unit: Unit, heads: int, groups: int) -> nn.Module:
    from comfy.ldm.modules.attention import CrossAttention

    width = unit.inputs[0].shape[-1]
    return CrossAttention(width, heads=heads, dim_head=_split(width, heads))


def _comfy_block(unit: Unit, heads: int, groups: int) -> nn.Module:
    from comfy.ldm.modules.attention import BasicTransformerBlock

    width, text = (x.shape[-1] for x in unit.inputs[:2])
    return BasicTransformerBlock(width, heads, _split(width, heads), context_dim=text)


def _split(width: int, heads: int) -> int:
    if width % heads:
        raise ValueError(f"{heads} heads do not divide {width} channels")
    return width // heads


_BUILDERS: dict[str, dict[str, Builder]] = {
    "diffusers": {
        "InflatedConv3d": _conv,
        "ResnetBlock3D": _resnet,
        "Downsample3D": _down,
        "Upsample3D": _up,
        "SparseCausalAttention": _attention,
        "BasicTransformerBlock": _block,
        "Transformer3DModel": _transformers,
    },
    # ComfyUI's residual blocks and spatial transformers hold GroupNorms of 32 groups.
    "comfy": {
        "InflatedConv3d": _conv,
        "Downsample3D": _comfy_down,
        "Upsample3D": _comfy_up,
        "SparseCausalAttention": _comfy_attention,
        "BasicTransformerBlock": _comfy_block,
    },
}
