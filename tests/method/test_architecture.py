"""The site map of a UNet, at full size without memory, in both hosts."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lamp.errors import IncompatibleModelError
from lamp.method.architecture import canonical_names, describe_family, map_unet, to_host_state
from lamp.method.motion import TRAINED, Motion

SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD15_LDM = {
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
}
# As SD 2.x: linear projections, a fixed width of the heads.
SD2_LIKE = {
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": (2, 4, 4, 4),
    "use_linear_projection": True,
}
SD2_LIKE_LDM = {
    **SD15_LDM,
    "model_channels": 32,
    "channel_mult": [1, 2, 2, 2],
    "context_dim": 1024,
    "num_heads": -1,
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
}
# As SD-XL: no attention on the first level, several transformer blocks below, a size embedding.
SDXL_LIKE = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 3),
    "cross_attention_dim": 2048,
    "attention_head_dim": (2, 4, 8),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}
SDXL_LIKE_LDM = {
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 3, 3],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
    "transformer_depth_middle": 3,
    "context_dim": 2048,
    "num_heads": -1,
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 64,
}
PAIRS = {
    "sd1": (SD15, SD15_LDM),
    "sd2": (SD2_LIKE, SD2_LIKE_LDM),
    "sdxl": (SDXL_LIKE, SDXL_LIKE_LDM),
}


def diffusers_unet(config: dict[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def comfy_unet(shape: dict[str, Any]) -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    fixed = {"image_size": 32, "in_channels": 4, "out_channels": 4, "legacy": False}
    return UNetModel(**fixed, use_spatial_transformer=True, device="meta", **shape)


@pytest.fixture(scope="module")
def full_size() -> nn.Module:
    return diffusers_unet(SD15)


def parameter_names(unet: nn.Module) -> dict[str, torch.Size]:
    canonical = canonical_names(unet)
    named = {}
    for name, parameter in unet.named_parameters():
        module, _, last = name.rpartition(".")
        named[f"{canonical[module]}.{last}"] = parameter.shape
    return named


def test_counts_of_sites_at_full_size(full_size: nn.Module) -> None:
    sites = map_unet(full_size)
    assert (len(sites.convs), len(sites.blocks), len(sites.norms)) == (66, 16, 45)
    assert sites.family == "sd1"
    assert {block.heads for block in sites.blocks} == {8}


def test_parameter_counts_at_full_size(full_size: nn.Module) -> None:
    """The figures measured on the official model."""
    motion = Motion(map_unet(full_size), device="meta")
    counts = dict.fromkeys((*TRAINED, "norm_temp"), 0)
    for name, parameter in motion.named_parameters():
        counts[next(part for part in counts if f".{part}." in name)] += parameter.numel()
    assert counts == {
        "conv1d": 191_444_212,
        "attn_temp": 49_574_080,
        "attn1.to_q": 12_390_400,
        "conv_gate": 527_142,
        "norm_temp": 24_960,
    }
    trained = sum(parameter.numel() for parameter in motion.trained_parameters().values())
    assert trained == 253_935_834


@pytest.mark.parametrize("family", PAIRS)
def test_both_hosts_have_the_same_sites(comfy: ModuleType, family: str) -> None:
    config, shape = PAIRS[family]
    ours, theirs = diffusers_unet(config), comfy_unet(shape)
    assert parameter_names(theirs) == parameter_names(ours)
    first, second = map_unet(ours), map_unet(theirs)
    assert first.family == second.family == family
    assert [(s.name, s.channels) for s in first.convs] == [
        (s.name, s.channels) for s in second.convs
    ]
    assert [(s.name, s.channels, s.heads) for s in first.blocks] == [
        (s.name, s.channels, s.heads) for s in second.blocks
    ]
    assert [s.name for s in first.norms] == [s.name for s in second.norms]


def test_names_are_the_official_ones(full_size: nn.Module, shared_dir) -> None:
    official = json.loads((shared_dir / "fixtures" / "full_keys.json").read_text())
    assert set(parameter_names(full_size)) == set(official["lamp_to_sd"].values())
    sites = map_unet(full_size)
    assert [site.name for site in sites.convs] == sorted(official["inflated_convs"])
    expected = {name: tuple(shape) for name, (shape, _) in official["new_keys"].items()}
    motion = Motion(sites, device="meta").state_dict()
    ours = {k: tuple(v.shape) for k, v in motion.items() if not k.endswith("attn1.to_q.weight")}
    assert ours == expected


def test_state_is_renamed_for_comfyui(comfy: ModuleType) -> None:
    unet = comfy_unet(SD15_LDM)
    state = {
        name: torch.empty(shape, device="meta") for name, shape in parameter_names(unet).items()
    }
    renamed = to_host_state(unet, state)
    assert {k: v.shape for k, v in renamed.items()} == {
        k: v.shape for k, v in unet.state_dict().items()
    }


def test_a_module_that_is_not_a_unet_is_refused() -> None:
    with pytest.raises(IncompatibleModelError, match="Linear"):
        map_unet(nn.Linear(2, 2))


def test_a_unet_without_cross_attention_is_refused() -> None:
    unet = nn.Module()
    unet.down_blocks = nn.ModuleList([nn.Conv2d(4, 4, 3)])
    with pytest.raises(IncompatibleModelError, match="cross-attention"):
        map_unet(unet)


def test_an_unknown_layer_is_refused() -> None:
    unet = nn.Module()
    unet.input_blocks = unet.output_blocks = nn.ModuleList()
    unet.middle_block = None
    unet.time_mixer = nn.Linear(2, 2)
    with pytest.raises(IncompatibleModelError, match="'time_mixer'"):
        map_unet(unet)


@pytest.mark.parametrize(("family", "label"), [("sd1", "SD 1.x"), ("text24", "'text24'")])
def test_families_have_display_names(family: str, label: str) -> None:
    assert label in describe_family(family)
