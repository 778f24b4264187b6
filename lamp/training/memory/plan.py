"""Planning a run's memory before its first step: checkpointing, and a refusal with alternatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from ...errors import LampError
from ..latents import LatentClips
from ..recipe import PRECISIONS, TrainConfig
from .estimate import Estimating, Estimator, MemoryEstimate, MemoryPlan, Shadow, gigabytes

SUGGESTIONS = 3
_CLEAR_FIT = 0.85
_LATENT_STEP = 8  # 64 pixels in SD 1.x: every level of the UNet halves evenly
_RANK = 64  # a twentieth of the learned parameters in SD 1.x

Lever = tuple[float, str, dict[str, Any]]
"""How much a change harms, what it is called, and the settings it changes."""


class OutOfMemoryPlanError(LampError):
    """A run would need more memory than there is."""


def plan_memory(
    unet: nn.Module,
    latents: LatentClips,
    config: TrainConfig,
    checkpointing: str,
    device: torch.device,
    free: int,
    say: Callable[[str], None],
    shadow: Shadow,
) -> TrainConfig:
    """`config` with gradient checkpointing as `checkpointing` says (`RunChoices`).

    Args:
        unet: loaded already, in its final dtype.
        free: free bytes on the device beside it.
        say: receives the estimate.
        shadow: see `Estimator`.

    Raises:
        OutOfMemoryPlanError: the run cannot fit; names three settings with which it does.
    """
    largest = max((posterior.mean[0] for posterior in latents.posteriors), key=torch.Tensor.numel)
    tokens = [text.shape[1] for text in latents.text.values()]
    plan = MemoryPlan(
        **{each.name: getattr(config, each.name) for each in fields(config)},
        height=largest.shape[-2],
        width=largest.shape[-1],
        # Prompts of several lengths in a batch are repeated to one length.
        text_tokens=math.lcm(*tokens) if config.batch > 1 else max(tokens),
        device="cpu" if device.type == "cpu" else "cuda",
        fused=attention_is_fused(device, PRECISIONS[config.precision] or torch.float32),
        pixels=latents.clips.size(0)[1] // latents.posteriors[0].mean.shape[-2],
    )
    estimator = Estimator(unet, shadow)
    # The estimate includes the frozen UNet, whose part that is not loaded yet takes free memory.
    available = free + sum(p.nbytes for p in unet.parameters() if p.device.type == device.type)
    on = checkpointing == "on" or (
        checkpointing == "auto" and needs_checkpointing(estimator, plan, available)
    )
    plan = replace(plan, gradient_checkpointing=on)
    check_fit(estimator, plan, available)
    say(estimator(plan).describe() + process_memory(unet, device))
    return replace(config, gradient_checkpointing=on)


def needs_checkpointing(estimator: Estimating, plan: MemoryPlan, available: int) -> bool:
    """Whether a run does not clearly fit without checkpointing, which takes more time."""
    without = estimator(replace(plan, gradient_checkpointing=False))
    return without.total > _CLEAR_FIT * available


def check_fit(estimator: Estimating, plan: MemoryPlan, available: int) -> None:
    """Refuse a run that cannot fit.

    Args:
        available: bytes for the whole run, the loaded model included.

    Raises:
        OutOfMemoryPlanError: it cannot fit; names three settings with which it does.
    """
    estimate = estimator(plan)
    if estimate.total <= available:
        return
    begin = (
        f"Training on {plan.describe()} needs about {gigabytes(estimate.total)} of memory, and "
        f"{gigabytes(available)} are free."
    )
    if found := suggest(estimator, plan, available):
        choices = "; or with ".join(each.describe() for each in found)
        raise OutOfMemoryPlanError(f"{begin} It fits with {choices}.")
    leanest = {k: v for group in _levers(plan) for k, v in group[-1][2].items()}
    least = estimator(replace(plan, **leanest)).total
    raise OutOfMemoryPlanError(
        f"{begin} Even the smallest settings need {gigabytes(least)}: close other programs that "
        "use the device, or train on one with more memory."
    )


@dataclass(frozen=True)
class Suggestion:
    """Settings to change in a plan, what they are called, and what the run then needs."""

    changes: dict[str, Any]
    name: str
    estimate: MemoryEstimate

    def describe(self) -> str:
        """Such as `checkpointing on (7.3 GB)`."""
        return f"{self.name} ({gigabytes(self.estimate.total)})"


def suggest(
    estimator: Estimating,
    plan: MemoryPlan,
    available: int,
    allowed: Callable[[MemoryPlan], bool] = lambda plan: True,
    most: int = SUGGESTIONS,
) -> list[Suggestion]:
    """The combinations of changes with which the run fits, the least harmful first.

    One that goes further than another on every lever comes only if there are not enough others.

    Args:
        allowed: whether a changed plan may be suggested.
        most: number of suggestions.
    """
    groups: list[list[Lever]] = [[(0.0, "", {}), *group] for group in _levers(plan)]
    found: dict[tuple[int, ...], Suggestion] = {}
    further = []

    def levers(choice: tuple[int, ...]) -> list[Lever]:
        return [group[i] for group, i in zip(groups, choice, strict=True) if i]

    def suggestion(choice: tuple[int, ...]) -> Suggestion | None:
        changes = {k: v for _, _, change in levers(choice) for k, v in change.items()}
        name = " and ".join(name for _, name, _ in levers(choice))
        try:
            changed = replace(plan, **changes)
        except LampError:
            return None  # changes that do not go together
        if not allowed(changed):
            return None
        # Activations shrink at most in proportion to the video, which spares most of the passes.
        size: dict[str, Any] = {"frames": plan.frames, "height": plan.height, "width": plan.width}
        full = estimator(replace(changed, **size))
        shrunk = (full.activations + full.cached) * (1 - changed.positions / plan.positions)
        if full.total - shrunk > available:
            return None
        estimate = estimator(changed)
        return Suggestion(changes, name, estimate) if estimate.total <= available else None

    choices = itertools.product(*(range(len(group)) for group in groups))
    for choice in sorted(choices, key=lambda each: sum(harm for harm, *_ in levers(each))):
        if any(all(i >= j for i, j in zip(choice, known, strict=True)) for known in found):
            further.append(choice)
        elif fitting := suggestion(choice):
            found[choice] = fitting
            if len(found) == most:
                break
    for choice in further:
        if len(found) < most and (fitting := suggestion(choice)):
            found[choice] = fitting
    return list(found.values())


def _levers(plan: MemoryPlan) -> Iterator[list[Lever]]:
    """What can be changed, in groups of alternatives that save more and more: first what costs
    time, then precision; smaller videos or a low rank if that is not enough, shorter videos last.
    """
    if not plan.gradient_checkpointing:
        yield [(1.0, "checkpointing on", {"gradient_checkpointing": True})]
    clips = plan.accumulate * plan.batch
    one: Lever = (4.0, "batch 1 and accumulate 1", {"batch": 1, "accumulate": 1})
    if plan.batch > 1:
        # Accumulation keeps the gradients, which a single clip does not.
        in_turn = {"batch": 1, "accumulate": clips}
        yield [(1.2, f"batch 1 and accumulate {clips}", in_turn), one]
    elif clips > 1:
        yield [one]
    if plan.device == "cuda":
        if plan.precision == "fp32":
            yield [(1.5, "precision bf16", {"precision": "bf16"})]
        if updates := list(_updates(plan)):
            yield updates
    if plan.ema:
        yield [(2.5, "ema off", {"ema": 0.0})]
    if sizes := list(_smaller_sizes(plan)):
        yield [
            (
                12.0 + 2 * i,
                f"clips of {width * plan.pixels} x {height * plan.pixels} pixels",
                {"height": height, "width": width},
            )
            for i, (height, width) in enumerate(sizes)
        ]
    if not plan.rank:
        yield [(13.0, f"rank {_RANK}", {"rank": _RANK})]
    fewer = [f for share in (0.75, 0.5, 0.25) if (f := int(plan.frames * share)) >= 2]
    if fewer:
        yield [(15.0 + 2 * i, f"frames {f}", {"frames": f}) for i, f in enumerate(fewer)]


def _updates(plan: MemoryPlan) -> Iterator[Lever]:
    """Smaller optimizer states, and updates that free the gradients early."""
    in_backward: Lever = (1.8, "update backward", {"update": "backward"})
    early = plan.update == "step" and plan.precision != "fp16"
    if early and plan.optimizer in ("adamw", "muon", "adamw8bit"):
        yield in_backward
    if plan.optimizer == "adamw" and plan.update != "offload":
        yield (2.0, "optimizer adamw8bit", {"optimizer": "adamw8bit"})
        if early:
            both = {"optimizer": "adamw8bit", "update": "backward"}
            yield (2.4, "optimizer adamw8bit and update backward", both)
    leaves = plan.update != "offload" and plan.precision != "fp16"
    if leaves and plan.optimizer in ("adamw", "muon"):
        yield (6.0, "update offload", {"update": "offload"})


def _smaller_sizes(plan: MemoryPlan) -> Iterator[tuple[int, int]]:
    """(height, width) below the plan's, of nearly its aspect, the shorter side in steps of 64
    pixels."""
    short, long = sorted((plan.height, plan.width))
    for side in range((short - 1) // _LATENT_STEP * _LATENT_STEP, 0, -_LATENT_STEP):
        other = max(round(side * long / short / _LATENT_STEP) * _LATENT_STEP, side)
        yield (other, side) if plan.height > plan.width else (side, other)


def attention_is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's attention trains on a device without holding the attention matrix. Apple's
    and other GPUs have no such kernel with gradients."""
    if device.type != "cuda":
        return device.type == "cpu"
    from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

    q = torch.empty(1, 1, 64, 40, dtype=dtype, device=device, requires_grad=True)
    asked = SDPAParams(q, q, q, None, 0.0, False, False)
    return bool(can_use_flash_attention(asked) or can_use_efficient_attention(asked))


def process_memory(unet: nn.Module, device: torch.device) -> str:
    """On a CPU, a sentence on what the estimate leaves out: whatever else the process holds."""
    if device.type != "cpu":
        return ""
    import psutil

    loaded = sum(p.nbytes for p in unet.parameters() if p.device.type == "cpu")
    others = max(psutil.Process().memory_info().rss - loaded, 0)
    return f" This process also holds {gigabytes(others)} of libraries and data."


def free_memory(device: torch.device) -> int:
    """Free bytes on a device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    return int(psutil.virtual_memory().available)
