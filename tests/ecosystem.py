"""The host's own patch nodes, and short runs of its KSampler on few frames."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.comfy_runs import SEED, conditioning
from tests.tiny_models import video_latent

FRAMES, STEPS = 4, 2


def host_node(module: str, kind: str, /, **inputs: Any) -> Any:
    """The first output of a node of the host, written in the old way or the new one."""
    name = "nodes" if module == "nodes" else f"comfy_extras.nodes_{module}"
    node = getattr(importlib.import_module(name), kind)
    run = node.execute if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)
    return run(**inputs)[0]


@dataclass(frozen=True)
class Patch:
    """A node of the host that takes a MODEL and gives it back changed."""

    module: str
    kind: str
    inputs: dict[str, Any]

    def __call__(self, model: Any) -> Any:
        return host_node(self.module, self.kind, model=model, **self.inputs)


_FREE_U = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
_SHRINK = {
    "block_number": 1,
    "downscale_factor": 2.0,
    "start_percent": 0.0,
    "end_percent": 0.9,
    "downscale_after_skip": True,
    "downscale_method": "bicubic",
    "upscale_method": "bicubic",
}
_ATTENTION = {"q": 1.2, "k": 1.0, "v": 1.0, "out": 1.1}
PATCHES = {
    patch.kind: patch
    for patch in (
        Patch("freelunch", "FreeU", _FREE_U),
        Patch("freelunch", "FreeU_V2", _FREE_U),
        Patch("sag", "SelfAttentionGuidance", {"scale": 0.8, "blur_sigma": 2.0}),
        Patch("pag", "PerturbedAttentionGuidance", {"scale": 3.0}),
        Patch(
            "hypertile",
            "HyperTile",
            {"tile_size": 32, "swap_size": 2, "max_depth": 1, "scale_depth": False},
        ),
        Patch("tomesd", "TomePatchModel", {"ratio": 0.5}),
        Patch("model_advanced", "RescaleCFG", {"multiplier": 0.7}),
        Patch("model_downscale", "PatchModelAddDownscale", _SHRINK),
        Patch("fresca", "FreSca", {"scale_low": 1.0, "scale_high": 1.5, "freq_cutoff": 2}),
        Patch("mahiro", "Mahiro", {}),
        Patch("tcfg", "TCFG", {}),
        Patch("apg", "APG", {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}),
        Patch("eps", "EpsilonScaling", {"scaling_factor": 1.05}),
        Patch("attention_multiply", "UNetSelfAttentionMultiply", _ATTENTION),
        Patch("attention_multiply", "UNetCrossAttentionMultiply", _ATTENTION),
    )
}


def sample(
    model: Any,
    sampler: str = "euler",
    scheduler: str = "normal",
    *,
    steps: int = STEPS,
    cfg: float = 2.0,
    positive: Any = None,
    samples: Tensor | None = None,
    **latent: Any,
) -> Tensor:
    """The stock KSampler; patches that roll dice roll the same ones each time."""
    import nodes

    prompts = conditioning()
    latent["samples"] = video_latent(FRAMES) if samples is None else samples
    torch.manual_seed(0)
    (out,) = nodes.common_ksampler(
        model, SEED, steps, cfg, sampler, scheduler, positive or prompts[0], prompts[1], latent
    )
    return out["samples"]


def image_tokens(
    tokens: Tensor, weight: float = 1.0
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What an IP-Adapter does in cross-attention, as an attn2_patch and as an attn2_replace.

    Args:
        tokens: `t c`, of the width of the text.
    """

    def beside(x: Tensor) -> Tensor:
        return tokens.to(x).expand(len(x), -1, -1)

    def patch(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
        more = weight * beside(k)
        return q, torch.cat([k, more], 1), torch.cat([v, more], 1)

    def replace(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        heads = options["n_heads"]
        # a projection of its own into each layer's width, as an adapter has one
        generator = torch.Generator().manual_seed(q.shape[-1])
        project = torch.randn(tokens.shape[-1], q.shape[-1], generator=generator)
        picture = beside(k) @ (project / tokens.shape[-1] ** 0.5).to(k)
        text = optimized_attention(q, k, v, heads)
        return text + weight * optimized_attention(q, picture, picture, heads)

    return patch, replace


def lora_state(patcher: Any, seed: int = 5) -> dict[str, Tensor]:
    """A LoRA of rank 2 as its files hold it, on attention and on convolutions."""
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
    """A CONTROL_NET for a MODEL of tests/tiny_models.py, with random weights."""
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
