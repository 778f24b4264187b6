"""Small models in the shapes of SD 1.x, 2.x and SD-XL, from ComfyUI's classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import IncompatibleModelError
from ...method.architecture import family_of_text, to_host_state

_HOST_CLASSES = {"sd2": "SD20", "sdxl": "SDXL"}  # of comfy.supported_models; SD15 for others
_SIZE_WIDTH = 256


def build_patcher(
    config: dict[str, Any], state: dict[str, Tensor], *, v_prediction: bool = False
) -> Any:
    """A MODEL from a diffusers UNet config and weights with canonical names.

    The width of its text embeddings selects ComfyUI's model class.

    Args:
        v_prediction: the UNet predicts v, as SD 2.x at 768 pixels, not the noise.

    Raises:
        IncompatibleModelError: ComfyUI's UNet cannot have this shape.
    """
    import comfy.model_management as management
    import comfy.model_patcher

    model = empty_model(config, v_prediction=v_prediction)
    unet = model.diffusion_model
    unet.load_state_dict(to_host_state(unet, state))
    return comfy.model_patcher.ModelPatcher(
        model, management.get_torch_device(), management.unet_offload_device()
    )


def empty_model(
    config: dict[str, Any],
    dtype: torch.dtype = torch.float32,
    computes: torch.dtype | None = None,
    device: str = "cpu",
    *,
    v_prediction: bool = False,
) -> Any:
    """ComfyUI's frozen model of a diffusers UNet config, without weights; see `build_patcher`.

    Args:
        dtype: of its weights; ``computes``: in which it computes, if in another one.
        device: of its UNet.

    Raises:
        IncompatibleModelError: ComfyUI's UNet cannot have this shape.
    """
    import comfy.model_base
    import comfy.supported_models

    _check_shape(config)
    kind = (
        comfy.model_base.ModelType.V_PREDICTION if v_prediction else comfy.model_base.ModelType.EPS
    )
    family = family_of_text(config["cross_attention_dim"])
    base = getattr(comfy.supported_models, _HOST_CLASSES.get(family, "SD15"))
    model_config = type(
        f"Small{base.__name__}",
        (base,),
        {
            "unet_extra_config": {**base.unet_extra_config, **_heads(config)},
            "model_type": lambda self, state_dict, prefix="": kind,
        },
    )(_ldm_shape(config))
    model_config.set_inference_dtype(dtype, computes)
    model = model_config.get_model({}, "", device=torch.device(device))
    return model.requires_grad_(False).eval()


def _check_shape(config: dict[str, Any]) -> None:
    if (groups := config.get("norm_num_groups", 32)) != 32:
        raise IncompatibleModelError(
            f"ComfyUI's UNet has GroupNorms of 32 groups; this model has {groups}."
        )
    widths = config["block_out_channels"]
    if any(width % widths[0] for width in widths):
        raise IncompatibleModelError(
            f"In ComfyUI's UNet all widths are multiples of the first; this model has {widths}."
        )
    if _takes_pooled(config) and (size := config["addition_time_embed_dim"]) != _SIZE_WIDTH:
        raise IncompatibleModelError(
            f"ComfyUI's SD-XL embeds each size in {_SIZE_WIDTH} numbers; this model has {size}."
        )


def _takes_pooled(config: dict[str, Any]) -> bool:
    return config.get("addition_embed_type") == "text_time"


def _heads(config: dict[str, Any]) -> dict[str, int]:
    """One number of heads for all levels (SD 1.x), or one head width (SD 2.x, SD-XL)."""
    heads, widths = config["attention_head_dim"], config["block_out_channels"]
    if isinstance(heads, int):
        return {"num_heads": heads, "num_head_channels": -1}
    sizes = {width // count for width, count in zip(widths, heads, strict=True)}
    if len(sizes) > 1:
        raise IncompatibleModelError(
            f"In ComfyUI's UNet all heads have one width; this model has {sorted(sizes)}."
        )
    return {"num_heads": -1, "num_head_channels": sizes.pop()}


def _ldm_shape(config: dict[str, Any]) -> dict[str, Any]:
    """The LDM parameters of a diffusers UNet config."""
    widths = config["block_out_channels"]
    levels, layers = len(widths), config["layers_per_block"]
    # diffusers' default: attention at every level except the deepest.
    down = config.get("down_block_types") or ["CrossAttn"] * (levels - 1) + [""]
    blocks = config.get("transformer_layers_per_block", 1)
    blocks = [blocks] * levels if isinstance(blocks, int) else blocks
    depths = [depth if "CrossAttn" in kind else 0 for kind, depth in zip(down, blocks, strict=True)]
    pooled = _takes_pooled(config)
    return {
        "image_size": 32,
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "num_res_blocks": [layers] * levels,
        "channel_mult": [width // widths[0] for width in widths],
        "transformer_depth": [depth for depth in depths for _ in range(layers)],
        "transformer_depth_output": [depth for depth in depths for _ in range(layers + 1)],
        "transformer_depth_middle": blocks[-1],
        "context_dim": config["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config.get("use_linear_projection", False),
        "legacy": False,
        "num_classes": "sequential" if pooled else None,
        "adm_in_channels": config["projection_class_embeddings_input_dim"] if pooled else None,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }
