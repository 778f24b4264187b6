"""A run's memory settled before its first step: checkpointing chosen, what cannot fit refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ...errors import LampError
from ...method.architecture import map_unet
from ..latents import LatentClips
from ..recipe import PRECISIONS, TrainConfig
from .estimate import Estimator, MemoryPlan, choose_checkpointing, gigabytes
from .suggest import refuse

CHECKPOINTING = ("auto", "on", "off")


def settle_memory(
    unet: nn.Module,
    latents: LatentClips,
    config: TrainConfig,
    gradient_checkpointing: str,
    device: torch.device,
    free: int,
    say: Callable[[str], None],
    computed: torch.dtype | None = None,
) -> TrainConfig:
    """`config` with checkpointing `on`, `off` or, for `auto`, as the memory asks for it.

    Args:
        unet: loaded already, in the type that it will have.
        free: bytes that are left on the device beside it.
        say: told the estimate.
        computed: see `Estimator`.

    Raises:
        OutOfMemoryPlanError: the run cannot fit; names three settings with which it does.
        LampError: `gradient_checkpointing` is none of these words.
    """
    if gradient_checkpointing not in CHECKPOINTING:
        raise LampError(
            f"checkpointing is '{gradient_checkpointing[:40]}': choose {', '.join(CHECKPOINTING)}."
        )
    sites = map_unet(unet)
    largest = max(latents.posteriors, key=lambda posterior: posterior.mean[0].numel())
    height, width = largest.mean.shape[-2:]
    plan = MemoryPlan.of(
        replace(config, gradient_checkpointing=gradient_checkpointing == "on"),
        height,
        width,
        text_tokens=_longest([text.shape[1] for text in latents.text.values()], config.batch),
        device="cpu" if device.type == "cpu" else "cuda",
        fused=attention_is_fused(device, PRECISIONS[config.precision] or torch.float32),
        pixels=latents.clips.size(0)[1] // latents.posteriors[0].mean.shape[-2],
    )
    estimator = Estimator(unet, sites, computed)
    # The estimate counts the frozen UNet, too; what of it is not there yet takes of what is free.
    there = [p for p in unet.parameters() if p.device.type == device.type]
    available = free + sum(p.nbytes for p in there)
    if gradient_checkpointing == "auto":
        plan = replace(
            plan, gradient_checkpointing=choose_checkpointing(estimator, plan, available)
        )
    refuse(estimator, plan, available)
    say(estimator(plan).sentence() + held_besides(unet, device))
    return replace(config, gradient_checkpointing=plan.gradient_checkpointing)


def _longest(tokens: list[int], batch: int) -> int:
    """Tokens of the longest prompt, as prompts of several lengths in one batch become it."""
    return math.lcm(*tokens) if batch > 1 else max(tokens)


def attention_is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's attention trains on a device without holding the matrix of all pairs.

    On GPUs of Apple and others it has no such kernel for what needs a gradient.
    """
    if device.type != "cuda":
        return device.type == "cpu"
    from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

    q = torch.empty(1, 1, 64, 40, dtype=dtype, device=device, requires_grad=True)
    asked = SDPAParams(q, q, q, None, 0.0, False, False)
    return bool(can_use_flash_attention(asked) or can_use_efficient_attention(asked))


def held_besides(unet: nn.Module, device: torch.device) -> str:
    """On a CPU, a sentence about what the estimate leaves out: all that the process holds besides
    the frozen model, such as Python, the libraries, encoded clips and other models."""
    if device.type != "cpu":
        return ""
    try:
        import psutil
    except ImportError:
        return " The program itself and its libraries are not counted."
    there = sum(p.nbytes for p in unet.parameters() if p.device.type == "cpu")
    besides = max(psutil.Process().memory_info().rss - there, 0)
    return f" This process holds {gigabytes(besides)} besides, for its libraries and data."


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where that cannot be told."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)
