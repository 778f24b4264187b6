"""How much memory a training run needs, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...method.architecture import map_unet, pooled_width, text_width
from ...method.host import Host
from ...method.layout import FrameLayout
from ...method.motion import Motion
from ..gradient_checkpointing import checkpointed
from ..loop import predict_loss
from ..low_rank import factorise
from ..recipe import PRECISIONS, TrainConfig
from ..twins import twin
from .trace import DeviceRules, MemoryTrace

GB = 2**30
OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.0 + 8 / 256}
"""Optimizer state in bytes per learned parameter: two moments; 8-bit blocks of 256 have scales."""

_CUDA_WORKSPACE = 32 * 2**20  # cuBLAS keeps it from its first product on


@dataclass(frozen=True)
class MemoryPlan(TrainConfig):
    """The settings of a run, and what else its memory depends on.

    - ``height``, ``width`` of the latents, each ``pixels`` pixels large;
    - ``weights_dtype`` of the frozen UNet; None: as loaded;
    - ``device``: `cpu`, or `cuda` for any GPU; ``fused``: see `DeviceRules`.
    """

    height: int = 40
    width: int = 64
    text_tokens: int = 77
    weights_dtype: torch.dtype | None = None
    device: str = "cuda"
    fused: bool = True
    pixels: int = 8

    @property
    def positions(self) -> int:
        """Latent positions of a video."""
        return self.frames * self.height * self.width

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
    """Bytes on the device at the worst moment of a step: the frozen ``model``, the ``motion`` in
    fp32, the ``optimizer``'s state, the ``average`` of the motion, and ``activations`` with the
    gradients and everything temporary. ``plan``: with its weights' dtype filled in.
    """

    plan: MemoryPlan
    model: int
    motion: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return self.model + self.motion + self.optimizer + self.average + self.activations

    def describe(self) -> str:
        """The estimate in one sentence."""
        average = f", its average {gigabytes(self.average)}" if self.average else ""
        return (
            f"Training on {self.plan.describe()} needs about {gigabytes(self.total)}: frozen model "
            f"{gigabytes(self.model)}, motion {gigabytes(self.motion)}{average}, optimizer state "
            f"{gigabytes(self.optimizer)}, activations and gradients "
            f"{gigabytes(self.activations)}."
        )


Estimating = Callable[[MemoryPlan], MemoryEstimate]
Shadow = Callable[[nn.Module, torch.dtype | None], Host]
"""Makes the host of a UNet on `meta` that computes in a dtype, None: as it does now."""


class Estimator:
    """Estimates for one UNet. A step of new shapes takes about a second, others are cached.

    Args:
        unet: the host's own UNet, which is not changed.
        shadow: see `Shadow`.
    """

    def __init__(self, unet: nn.Module, shadow: Shadow) -> None:
        self._unet, self._shadow = unet, shadow
        self._sites = map_unet(unet)
        block = unet.get_submodule(self._sites.blocks[0].module)
        self._loaded: torch.dtype = block.attn2.to_k.weight.dtype
        self._peaks: dict[MemoryPlan, int] = {}

    def __call__(self, plan: MemoryPlan) -> MemoryEstimate:
        """The estimate for one plan."""
        plan = replace(plan, weights_dtype=plan.weights_dtype or self._loaded)
        # As loaded, norms may have another dtype than the rest.
        dtype = None if plan.weights_dtype == self._loaded else plan.weights_dtype
        unet = meta_copy(self._unet, dtype)
        motion = Motion(self._sites, device="meta")
        if plan.rank:
            factorise(motion, plan.rank, seed=0)
        trained = sum(p.numel() for p in motion.trained_parameters().values())
        same = replace(plan, accumulate=min(plan.accumulate, 2), ema=0.0, optimizer="adamw")
        if same not in self._peaks:
            self._peaks[same] = step_peak(self._shadow(unet, dtype), motion, plan)
        # AdamW on a GPU holds intermediate values as large as the gradients; the CPU's fused kernel
        # and 8-bit AdamW hold none.
        on_gpu = plan.device == "cuda"
        update = 4 * trained * (2 if on_gpu and plan.optimizer == "adamw" else 1)
        return MemoryEstimate(
            plan,
            model=sum(p.nbytes for p in [*unet.parameters(), *unet.buffers()]),
            motion=sum(p.numel() * 4 for p in motion.parameters()),
            optimizer=int(trained * OPTIMIZER_BYTES[plan.optimizer]),
            average=4 * trained if plan.ema else 0,
            activations=max(self._peaks[same], update) + (_CUDA_WORKSPACE if on_gpu else 0),
        )


def step_peak(host: Host, motion: Motion, plan: MemoryPlan) -> int:
    """Peak bytes of one training step on `meta`, besides weights and learned parameters."""
    unet, learned = host.unet, list(motion.trained_parameters().values())
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        motion.requires_grad_(False)
        for parameter in learned:
            parameter.requires_grad_(True)
            # Accumulated gradients live through the forward pass.
            parameter.grad = torch.empty_like(parameter) if plan.accumulate > 1 else None
        kept = sum(p.grad.nbytes for p in learned if p.grad is not None)
        given = [*unet.parameters(), *unet.buffers(), *motion.parameters()]
        trace = MemoryTrace(plan.device, given)
        rules = DeviceRules(plan.device, PRECISIONS[plan.precision], plan.fused)
        layout = FrameLayout(plan.frames, plan.batch)
        stack.enter_context(motion.attached(unet, layout, groupnorm=plan.groupnorm))
        if plan.gradient_checkpointing:
            stack.enter_context(checkpointed(unet, motion))
        stack.enter_context(trace)
        size = (plan.batch * plan.frames, 4, plan.height, plan.width)
        latents, noise = (torch.empty(size, device="meta") for _ in range(2))
        timesteps = torch.zeros(plan.batch, dtype=torch.long)
        prompt_width = text_width(unet) + pooled_width(unet)
        text = torch.empty(plan.batch, plan.text_tokens, prompt_width, device="meta")
        with rules:
            loss = predict_loss(host, latents, noise, timesteps, text)
        rules.end_forward()
        with rules:
            # `loss.backward()` itself would turn the rules off during recomputation.
            torch.autograd.Variable._execution_engine.run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (),
                allow_unreachable=True, accumulate_grad=True,
            )  # fmt: skip
    return trace.peak + kept


def meta_copy(module: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """A copy without hooks on the `meta` device; `dtype` replaces floating-point dtypes."""

    def empty(tensor: Tensor, *_: Any) -> Tensor:
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, dtype=kind, device="meta")

    return twin(module, empty, lambda name: name.endswith("_hooks"))


def gigabytes(size: float) -> str:
    """`1.5 GB`, in the units in which graphics cards are sold; below 1 GB in MB or kB."""
    if size >= GB:
        return f"{size / GB:.1f} GB"
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{math.ceil(size / 2**10)} kB"
