"""Small models of the SD 1.x shape built from ComfyUI's own classes, without a checkpoint file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..architecture import to_host_state
from ..errors import IncompatibleModelError


def build_patcher(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    """A MODEL from a diffusers UNet config and weights in canonical names.

    Raises:
        IncompatibleModelError: ComfyUI's UNet cannot take the shape; its GroupNorms have 32 groups.
    """
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    if (groups := config.get("norm_num_groups", 32)) != 32:
        raise IncompatibleModelError(
            f"ComfyUI's UNet fixes GroupNorm at 32 groups; this model has {groups}."
        )
    widths = config["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise IncompatibleModelError(
            f"ComfyUI's UNet takes widths that are multiples of the first; this model has {widths}."
        )
    shape = _ldm_shape(config)
    heads = shape.pop("num_heads")
    family = type(
        "SmallSD15",
        (comfy.supported_models.SD15,),
        {"unet_extra_config": {"num_heads": heads, "num_head_channels": -1}},
    )(shape)
    family.set_inference_dtype(torch.float32, None)
    model = family.get_model({}, "", device=torch.device("cpu"))
    unet = model.diffusion_model
    unet.load_state_dict(to_host_state(unet, state))
    model.requires_grad_(False).eval()
    return comfy.model_patcher.ModelPatcher(
        model, management.get_torch_device(), management.unet_offload_device()
    )


def _ldm_shape(config: dict[str, Any]) -> dict[str, Any]:
    """The LDM parameters of a diffusers UNet config."""
    widths = config["block_out_channels"]
    levels, layers = len(widths), config["layers_per_block"]
    # The default of diffusers: attention at every level but the deepest.
    down = config.get("down_block_types") or ["CrossAttn"] * (levels - 1) + [""]
    attends = [int("CrossAttn" in kind) for kind in down]
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "num_res_blocks": [layers] * levels,
        "channel_mult": [width // widths[0] for width in widths],
        "transformer_depth": [a for a in attends for _ in range(layers)],
        "transformer_depth_output": [a for a in attends for _ in range(layers + 1)],
        "transformer_depth_middle": 1,
        "num_heads": config["attention_head_dim"],
        "context_dim": config["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "legacy": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }
