"""ComfyUI's own patch nodes, and short runs of its KSampler."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import SEED, conditioning, moving
from benchmarks.samples.tiny_models import random_motion, video_latent

FRAMES, STEPS = 4, 2


def host_node(module: str, kind: str, /, **inputs: Any) -> Any:
    """The first output of one of ComfyUI's own nodes, in the old or the new form of its class.

    Inputs that this version of the node does not have are left out.
    """
    name = "nodes" if module == "nodes" else f"comfy_extras.nodes_{module}"
    node = getattr(importlib.import_module(name), kind)
    run = node.execute if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)
    known = inspect.signature(run).parameters
    return run(**{name: value for name, value in inputs.items() if name in known})[0]


@dataclass(frozen=True)
class Patch:
    """A node of ComfyUI that patches a MODEL."""

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
    """The stock KSampler, with a fixed random state for patches that use one."""
    import nodes

    prompts = conditioning()
    latent["samples"] = video_latent(FRAMES) if samples is None else samples
    torch.manual_seed(0)
    (out,) = nodes.common_ksampler(
        model, SEED, steps, cfg, sampler, scheduler, positive or prompts[0], prompts[1], latent
    )
    return out["samples"]


def still(plain: Any) -> Any:
    """A MODEL with a motion of zeros and per-frame statistics: frames are independent images."""
    fresh = random_motion(plain, size=0.0)
    return moving(plain, fresh, groupnorm="frame", first_frame=False, alpha=0.0)


WINDOWS = {
    "context_length": 3,
    "context_overlap": 1,
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "dim": 0,
    "freenoise": False,
    "cond_retain_index_list": "",
    "split_conds_to_windows": False,
}
