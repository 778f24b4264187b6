"""Extensions used beside a motion, for the tiny models: image tokens, a LoRA, a ControlNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def image_tokens(
    tokens: Tensor, weight: float = 1.0
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The cross-attention of an IP-Adapter, as an attn2_patch and as an attn2_replace.

    Args:
        tokens: `t c`, with the width of the text.
    """

    def beside(x: Tensor) -> Tensor:
        return tokens.to(x).expand(len(x), -1, -1)

    def patch(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
        more = weight * beside(k)
        return q, torch.cat([k, more], 1), torch.cat([v, more], 1)

    def replace(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        heads = options["n_heads"]
        # an adapter has a projection into each layer's width
        generator = torch.Generator().manual_seed(q.shape[-1])
        project = torch.randn(tokens.shape[-1], q.shape[-1], generator=generator)
        picture = beside(k) @ (project / tokens.shape[-1] ** 0.5).to(k)
        text = optimized_attention(q, k, v, heads)
        return text + weight * optimized_attention(q, picture, picture, heads)

    return patch, replace


def lora_state(patcher: Any, seed: int = 5) -> dict[str, Tensor]:
    """The state of a LoRA file of rank 2, on attention and convolutions."""
    import comfy.lora

    generator, state = torch.Generator().manual_seed(seed), {}
    weights = patcher.model.state_dict()
    for name, key in comfy.lora.model_lora_keys_unet(patcher.model, {}).items():
        ours = name.startswith("lora_unet_") and isinstance(key, str)
        if ours and name.endswith(("attn1_to_q", "attn2_to_k", "_conv1", "_in_layers_2")):
            weight = weights[key]
            kernel = weight.shape[2:]
            up = torch.randn(len(weight), 2, generator=generator)
            down = torch.randn(2, *weight.shape[1:], generator=generator)
            state[f"{name}.lora_up.weight"] = up[..., None, None] if kernel else up
            state[f"{name}.lora_down.weight"] = down / weight[0].numel() ** 0.5
            state[f"{name}.alpha"] = torch.tensor(1.0)
    return state


def tiny_control(patcher: Any) -> Any:
    """A CONTROL_NET for a MODEL of benchmarks/samples/tiny_models.py, with random weights."""
    import comfy.model_management as management
    import comfy.ops
    from comfy.cldm.cldm import ControlNet as ControlModel
    from comfy.controlnet import ControlNet

    unet = patcher.model.model_config.unet_config
    drop = ("out_channels", "transformer_depth_output", "use_temporal_attention")
    shape = {k: v for k, v in unet.items() if k not in (*drop, "use_temporal_resblock")}
    shape |= {"num_heads": 2, "num_head_channels": -1, "dtype": torch.float32}
    operations = comfy.ops.disable_weight_init
    control = ControlModel(hint_channels=3, operations=operations, **shape)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return ControlNet(control, load_device=management.get_torch_device(), manual_cast_dtype=None)
