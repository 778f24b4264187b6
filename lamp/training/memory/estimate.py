"""How much memory a tuning run will need, told before its first step and from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from ...errors import LampError
from ...method.architecture import SiteMap
from ..recipe import PRECISIONS, TrainConfig
from .step import Shapes, StepMemory, measure_step, meta_copy, shadow_motion

GB = 2**30
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}
"""Optimiser state in bytes a learned parameter: two moments; 8-bit ones share scales by 256."""

_CUDA_WORKSPACE = 32 * 2**20  # what cuBLAS keeps for itself from its first product on
_CLEAR_FIT = 0.85


class OutOfMemoryPlanError(LampError):
    """A run would need more memory than there is."""


@dataclass(frozen=True)
class MemoryPlan:
    """The settings of a run that its memory depends on.

    - ``height``, ``width`` of the LATENTS, each ``pixels`` pixels large (8 in SD 1.x);
    - ``text_tokens``: 77, or a multiple of it for long prompts;
    - ``weights_dtype`` of the frozen UNet; None: as it was loaded;
    - ``device``: `cpu`, or `cuda` for every kind of GPU;
    - ``fused``: whether it has an attention kernel that never holds the matrix of all pairs.

    The other fields are those of `TrainConfig`. Raises LampError for a value outside its range.
    """

    frames: int
    height: int
    width: int
    batch: int = 1
    accumulate: int = 1
    text_tokens: int = 77
    precision: str = "fp32"
    weights_dtype: torch.dtype | None = None
    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    ema: bool = False
    rank: int = 0
    groupnorm: str = "pooled"
    device: str = "cuda"
    fused: bool = True
    pixels: int = 8

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "batch", "accumulate", "text_tokens", "pixels"):
            if getattr(self, name) < 1:
                raise LampError(f"{name} is {getattr(self, name)}: choose 1 or more.")
        for name, known in (
            ("precision", tuple(PRECISIONS)),
            ("optimizer", tuple(OPTIMIZER_BYTES)),
            ("device", ("cpu", "cuda")),
        ):
            if getattr(self, name) not in known:
                raise LampError(f"{name} is '{getattr(self, name)}': choose {' or '.join(known)}.")

    @classmethod
    def of(cls, config: TrainConfig, height: int, width: int, **others: Any) -> MemoryPlan:
        """The plan of a run with these settings on latents of this size."""
        own = {field.name for field in fields(cls)} & {field.name for field in fields(config)}
        given = {name: getattr(config, name) for name in own}
        given["ema"] = config.ema > 0
        return cls(height=height, width=width, **given, **others)

    def describe(self) -> str:
        """The settings in words."""
        size = f"{self.width * self.pixels} x {self.height * self.pixels} pixels"
        state = "on" if self.gradient_checkpointing else "off"
        return (
            f"{self.frames} frames of {size}, batch {self.batch}, precision {self.precision}, "
            f"checkpointing {state}, optimizer {self.optimizer}"
            + (f", rank {self.rank}" if self.rank else "")
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device at the worst moment of a step, by what they are for.

    - ``plan``: with the weights' type filled in;
    - ``weights``: the frozen UNet; ``learned``: the motion's parameters, fp32;
    - ``gradients`` that exist at that moment; ``optimizer``: its state; ``ema``: the average;
    - ``saved``: activations (and copies in low precision) kept for the backward pass;
    - ``transient``: all else that lives for a few operations only.
    """

    plan: MemoryPlan
    weights: int
    learned: int
    gradients: int
    optimizer: int
    ema: int
    saved: int
    transient: int

    @property
    def activations(self) -> int:
        return self.saved + self.transient

    @property
    def total(self) -> int:
        parts = (self.weights, self.learned, self.gradients, self.optimizer, self.ema)
        return sum(parts) + self.activations

    def sentence(self) -> str:
        """The estimate in one sentence."""
        parts = [
            (self.weights, "the frozen model"),
            (self.learned, "the motion"),
            (self.gradients, "its gradients"),
            (self.optimizer, "the optimiser's state"),
            (self.ema, "the averaged motion"),
            (self.activations, "activations"),
        ]
        named = [f"{gigabytes(size)} for {what}" for size, what in parts if size]
        return (
            f"Training on {self.plan.describe()} will take about {gigabytes(self.total)}: "
            f"{', '.join(named[:-1])} and {named[-1]}."
        )


Estimating = Callable[[MemoryPlan], MemoryEstimate]
"""An `Estimator`, or anything else that tells what a plan needs."""


class Estimator:
    """Estimates for one UNet; each pass of a new shape takes seconds, others are remembered.

    Args:
        unet: the host's own UNet (diffusers or ComfyUI), left as it is.
        sites: its motion sites.
        computed: the type in which the host computes, to which it casts weights of another type
            layer by layer; by default that of the weights, or the least that goes with a plan's
            precision.
    """

    def __init__(
        self, unet: nn.Module, sites: SiteMap, computed: torch.dtype | None = None
    ) -> None:
        self._unet, self._sites = unet, sites
        block = unet.get_submodule(sites.blocks[0].module)
        self._text_width = block.attn2.to_k.in_features
        self._loaded = block.attn2.to_k.weight.dtype
        self._computed = computed
        self._copies: dict[torch.dtype | None, nn.Module] = {}
        self._passes: dict[tuple[torch.dtype | None, Shapes], StepMemory] = {}

    def __call__(self, plan: MemoryPlan) -> MemoryEstimate:
        """The estimate for one plan.

        Raises:
            LampError: precision fp32 is planned for a model that computes in another type.
        """
        plan = replace(plan, weights_dtype=plan.weights_dtype or self._loaded)
        computed = self._computed_of(plan)
        if plan.precision == "fp32" and computed != torch.float32:
            raise LampError(
                f"precision is fp32, but the model computes in {computed}: choose bf16 or fp16, or "
                "load the model in fp32."
            )
        unet = self._copy(plan.weights_dtype)
        step = self._step(unet, plan)
        motion = shadow_motion(self._sites, plan.rank)
        trained = sum(p.numel() * 4 for p in motion.trained_parameters().values())
        update = _update_scratch(trained, plan)
        if trained + update > step.peak:
            step = StepMemory(0, trained + update, trained)
        activations = step.peak - step.gradients
        if plan.device == "cuda":
            activations += _CUDA_WORKSPACE
        saved = min(step.saved, activations)
        return MemoryEstimate(
            plan,
            weights=sum(p.nbytes for p in [*unet.parameters(), *unet.buffers()]),
            learned=sum(p.numel() * 4 for p in motion.parameters()),
            gradients=step.gradients,
            optimizer=int(trained / 4 * OPTIMIZER_BYTES[plan.optimizer]),
            ema=trained if plan.ema else 0,
            saved=saved,
            transient=activations - saved,
        )

    def _computed_of(self, plan: MemoryPlan) -> torch.dtype:
        """The type in which the UNet computes: loaded in another one, it needs no casts."""
        weights = plan.weights_dtype or self._loaded
        if weights != self._loaded:
            return weights
        if self._computed is not None:
            return self._computed
        low = PRECISIONS[plan.precision]
        if low is None:
            return torch.float32
        return weights if weights.itemsize > 1 else low  # fp8 is never computed in

    def _copy(self, dtype: torch.dtype | None) -> nn.Module:
        if dtype not in self._copies:
            # As loaded, norms may have another type than the rest.
            self._copies[dtype] = meta_copy(self._unet, None if dtype == self._loaded else dtype)
        return self._copies[dtype]

    def _step(self, unet: nn.Module, plan: MemoryPlan) -> StepMemory:
        names = {field.name for field in fields(Shapes)} & {field.name for field in fields(plan)}
        shapes = Shapes(
            **{name: getattr(plan, name) for name in names},
            computed=self._computed_of(plan),
            gradients_kept=plan.accumulate > 1,
        )
        key = (plan.weights_dtype, shapes)
        if key not in self._passes:
            self._passes[key] = measure_step(unet, self._sites, self._text_width, shapes)
        return self._passes[key]


def _update_scratch(trained: int, plan: MemoryPlan) -> int:
    """AdamW's own intermediate values for parameters of so many bytes in all: as many on a GPU;
    the fused kernel of the CPU and the 8-bit one need none."""
    return trained if plan.optimizer == "adamw" and plan.device == "cuda" else 0


def estimate(unet: nn.Module, sites: SiteMap, plan: MemoryPlan) -> MemoryEstimate:
    """The memory of a run with `plan`; see `Estimator` for several plans."""
    return Estimator(unet, sites)(plan)


def choose_checkpointing(estimator: Estimating, plan: MemoryPlan, available: int) -> bool:
    """What gradient checkpointing 'auto' means: off where the run clearly fits without, since it
    costs a second forward pass.

    Args:
        available: bytes that the run may take in all, those of a loaded model included.
    """
    return estimator(replace(plan, gradient_checkpointing=False)).total > _CLEAR_FIT * available


def gigabytes(size: float) -> str:
    """`1.5 GB`, in the units in which graphics cards are sold; less than one in MB or kB."""
    if size >= GB:
        return f"{size / GB:.1f} GB"
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{math.ceil(size / 2**10)} kB"
