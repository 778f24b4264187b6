"""The map of a UNet: where a motion attaches, and the name of each site in each host.

A motion uses canonical (diffusers) names such as `down_blocks.0.resnets.0.conv1`. ComfyUI keeps the
original LDM layout (`input_blocks.1.0.in_layers.2`). Names are derived from the UNet itself, so any
depth, width and number of attention blocks can be mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import IncompatibleModelError


@dataclass(frozen=True)
class ConvSite:
    """A convolution that gets a temporal branch (paper fig. 3b); `channels` of its output."""

    name: str
    module: str
    channels: int


@dataclass(frozen=True)
class BlockSite:
    """A transformer block: first-frame self-attention, trained query, temporal attention."""

    name: str
    module: str
    channels: int
    heads: int


@dataclass(frozen=True)
class NormSite:
    """A GroupNorm whose statistics are computed over all frames of a video."""

    name: str
    module: str


@dataclass(frozen=True)
class SiteMap:
    """All sites of one UNet at which a motion attaches, sorted by canonical name.

    `resnets`: the residual blocks by their names in the host.
    """

    convs: tuple[ConvSite, ...]
    blocks: tuple[BlockSite, ...]
    norms: tuple[NormSite, ...]
    resnets: tuple[str, ...]
    family: str


_LDM_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_LDM_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_LDM_SIZE_WIDTH = 256  # of the embedding of each size value; fixed in the LDM layout
_FAMILY_OF_TEXT_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_FAMILY_LABEL = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SD-XL"}


def map_unet(unet: nn.Module) -> SiteMap:
    """Find every motion site of a UNet.

    The sites include every convolution except `proj_in` and `proj_out` of the transformers. SD 1.x
    has 66 convolutions, 16 transformer blocks and 45 pooled norms.

    Raises:
        IncompatibleModelError: the module is not a UNet of SD 1.x, 2.x or SD-XL.
    """
    names = canonical_names(unet)
    modules = dict(unet.named_modules())
    convs, blocks, norms, resnets = [], [], [], []
    for host_name, name in sorted(names.items(), key=lambda item: item[1]):
        module = modules[host_name]
        if isinstance(module, nn.Conv2d) and not name.endswith(("proj_in", "proj_out")):
            convs.append(ConvSite(name, host_name, module.out_channels))
        elif isinstance(module, nn.GroupNorm) and _is_pooled(name):
            norms.append(NormSite(name, host_name))
            if name.endswith(".norm1"):
                resnets.append(host_name.removesuffix(".norm1").removesuffix(".in_layers.0"))
        elif name.endswith(".attn1.to_q"):
            attention = modules[host_name.removesuffix(".to_q")]
            blocks.append(
                BlockSite(
                    name.removesuffix(".attn1.to_q"),
                    host_name.removesuffix(".attn1.to_q"),
                    module.out_features,
                    attention.heads,
                )
            )
    return SiteMap(tuple(convs), tuple(blocks), tuple(norms), tuple(resnets), unet_family(unet))


def canonical_names(unet: nn.Module) -> dict[str, str]:
    """Map the host name of every module with parameters to its canonical name."""
    if hasattr(unet, "down_blocks"):
        return {host: host for host in _parameter_owners(unet)}
    if hasattr(unet, "input_blocks") and hasattr(unet, "output_blocks"):
        places = dict(_ldm_places(unet))
        return {host: _rename(host, places) for host in _parameter_owners(unet)}
    raise IncompatibleModelError(
        f"{type(unet).__name__} is not a Stable Diffusion UNet: a LAMP motion attaches to SD 1.x "
        "models (and to SD 2.x or SD-XL with a motion trained for them). Connect such a MODEL."
    )


def to_host_state(unet: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a UNet state dict from canonical names to those of `unet`."""
    host = {name: host_name for host_name, name in canonical_names(unet).items()}
    renamed = {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        renamed[f"{host[module]}.{parameter}"] = value
    return renamed


def base_hash(unet: nn.Module, weights: Mapping[str, Tensor] | None = None) -> str:
    """A hash of the image model's self-attention queries, which a motion changes.

    It is the same in ComfyUI and diffusers, and for fp16 and fp32 copies.

    Args:
        weights: the UNet's own weights by name, if patches may be applied to it now
            (`unpatched_weights`).
    """
    digest = hashlib.sha256()
    weights = unet.state_dict() if weights is None else weights
    for site in map_unet(unet).blocks:
        weight = weights[f"{site.module}.attn1.to_q.weight"].detach()
        digest.update(weight.to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()


def family_of_text(width: int) -> str:
    """`sd1`, `sd2`, `sdxl`, or `text<width>` for other widths of the text embeddings."""
    return _FAMILY_OF_TEXT_WIDTH.get(width, f"text{width}")


def unet_family(unet: nn.Module) -> str:
    """The family of a UNet, from the width of the text that it attends to.

    Raises:
        IncompatibleModelError: it has no text cross-attention.
    """
    return family_of_text(text_width(unet))


def describe_family(family: str) -> str:
    """The display name of a family."""
    return _FAMILY_LABEL.get(family, f"'{family[:40]}' (a small model, not SD 1.x)")


def text_width(unet: nn.Module) -> int:
    """Width of the text embeddings that the UNet attends to: 768 in SD 1.x, 2048 in SD-XL.

    Raises:
        IncompatibleModelError: it has no text cross-attention.
    """
    for name, module in unet.named_modules():
        if name.endswith(".attn2.to_k"):
            return int(module.in_features)
    raise IncompatibleModelError(
        "The UNet has no text cross-attention: connect a Stable Diffusion 1.x MODEL."
    )


def pooled_width(unet: nn.Module) -> int:
    """Width of the pooled text embedding that the UNet takes: 1280 in SD-XL, 0 in SD 1.x and 2.x.

    The same input also holds six embedded size values, which do not count."""
    for name, module in unet.named_modules():
        if name in ("add_embedding.linear_1", "label_emb.0.0"):
            config = getattr(unet, "config", None)
            size = _LDM_SIZE_WIDTH if config is None else config.addition_time_embed_dim
            return int(module.in_features) - 6 * size
    return 0


def _parameter_owners(unet: nn.Module) -> Iterator[str]:
    for name, module in unet.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            yield name


def _is_pooled(name: str) -> bool:
    """As in the official code, the norms of residual blocks and before conv_out are pooled over
    frames; the first norm of a spatial transformer (`attentions.N.norm`) is not."""
    return ".resnets." in name or name == "conv_norm_out"


def _rename(host_name: str, places: dict[str, str]) -> str:
    if host_name in _LDM_TOP:
        return _LDM_TOP[host_name]
    parts = host_name.split(".")
    place = ".".join(parts[:3]) if parts[0] != "middle_block" else ".".join(parts[:2])
    rest = host_name[len(place) + 1 :]
    if place not in places:
        raise IncompatibleModelError(
            f"The UNet has a layer '{host_name}' that SD 1.x, 2.x and SD-XL do not have: "
            "connect a MODEL of one of these families."
        )
    if ".resnets." in places[place]:
        rest = _LDM_RESNET.get(rest, rest)
    elif "samplers." in places[place]:
        rest = "conv"
    return f"{places[place]}.{rest}"


def _ldm_places(unet: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (LDM name, canonical name) of each resnet, attention and resampler."""
    level, resnet = 0, 0
    for i, block in enumerate(list(unet.input_blocks)[1:], start=1):
        for j, kind in enumerate(_kinds(block)):
            yield f"input_blocks.{i}.{j}", _place(f"down_blocks.{level}", kind, resnet)
        if "downsamplers" in _kinds(block):
            level, resnet = level + 1, 0
        else:
            resnet += 1
    counts = {"resnets": 0, "attentions": 0}
    for j, kind in enumerate(_kinds(unet.middle_block or ())):
        yield f"middle_block.{j}", f"mid_block.{kind}.{counts[kind]}"
        counts[kind] += 1
    level, resnet = 0, 0
    for i, block in enumerate(unet.output_blocks):
        for j, kind in enumerate(_kinds(block)):
            yield f"output_blocks.{i}.{j}", _place(f"up_blocks.{level}", kind, resnet)
        resnet += 1
        if "upsamplers" in _kinds(block):
            level, resnet = level + 1, 0


def _place(block: str, kind: str, index: int) -> str:
    return f"{block}.{kind}.{0 if kind.endswith('samplers') else index}"


def _kinds(block: nn.Module | tuple) -> list[str]:
    """The kind of each child of an LDM block, recognised by its parts rather than by its class."""
    kinds = []
    for child in block:
        if hasattr(child, "in_layers"):
            kinds.append("resnets")
        elif hasattr(child, "transformer_blocks"):
            kinds.append("attentions")
        elif hasattr(child, "op"):
            kinds.append("downsamplers")
        else:
            kinds.append("upsamplers")
    return kinds
