"""How much memory a training run needs, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...method.architecture import map_unet, pooled_width, text_width
from ...method.host import Host
from ...method.layout import FrameLayout
from ...method.motion import Motion
from ...method.overrides import Hooks
from ..arena import MARGIN
from ..gradient_checkpointing import checkpointed
from ..last_norm import keep_last_norm_exact
from ..loop import predict_loss
from ..low_rank import factorise
from ..recipe import PRECISIONS, TrainConfig
from ..twins import twin
from .allocator import CachingAllocator, Event
from .trace import DeviceRules, MemoryTrace

GB = 2**30
OPTIMIZER_BYTES = {
    "adamw": 8.0,
    "muon": 4.2,
    "adamw8bit": 2.0 + 8 / 256,
    "prodigy": 16.0,
    "schedulefree": 8.0,
    "came": 7.0,
}
"""Optimizer state in bytes per learned parameter: two moments; 8-bit blocks of 256 have scales.
Muon has one for matrices, except the queries, a twentieth of the parameters.
Prodigy also holds its sums and the initial values, CAME one moment and rows of two others, of which
a motion convolution has a third of its size each."""

_CUDA_WORKSPACE = 32 * 2**20  # cuBLAS keeps it from its first product on


@dataclass(frozen=True)
class MemoryPlan(TrainConfig):
    """The settings of a run, and what else its memory depends on.

    - ``height``, ``width`` of the latents, each ``pixels`` pixels large;
    - ``device``: `cpu`, or `cuda` for any GPU; ``fused``: see `DeviceRules`.
    """

    height: int = 40
    width: int = 64
    text_tokens: int = 77
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
            + (f", update {self.update}" if self.update != "step" else "")
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device at the worst moment of a step: the frozen ``model``, the ``motion`` in
    fp32, the ``optimizer``'s state, the ``average`` of the motion, ``activations`` with the
    gradients and everything temporary, and on a GPU what PyTorch's allocator reserves besides
    (``cached``).
    """

    plan: MemoryPlan
    model: int
    motion: int
    optimizer: int
    average: int
    activations: int
    cached: int = 0

    @property
    def allocated(self) -> int:
        """Bytes in use, without what the allocator holds besides."""
        return self.model + self.motion + self.optimizer + self.average + self.activations

    @property
    def total(self) -> int:
        """Bytes that the run takes from the device."""
        return self.allocated + self.cached

    def describe(self) -> str:
        """The estimate in one sentence."""
        average = f", its average {gigabytes(self.average)}" if self.average else ""
        cached = f", memory allocator {gigabytes(self.cached)}" if self.cached else ""
        return (
            f"Training on {self.plan.describe()} needs about {gigabytes(self.total)}: frozen model "
            f"{gigabytes(self.model)}, motion {gigabytes(self.motion)}{average}, optimizer state "
            f"{gigabytes(self.optimizer)}, activations and gradients "
            f"{gigabytes(self.activations)}{cached}."
        )


Estimating = Callable[[MemoryPlan], MemoryEstimate]
Shadow = Callable[[nn.Module], Host]
"""Makes the host of a UNet on `meta` that computes as it does now."""


class Estimator:
    """Estimates for one UNet. A step of new shapes takes about a second, others are cached.

    Args:
        unet: the host's own UNet, which is not changed.
        shadow: see `Shadow`.
    """

    def __init__(self, unet: nn.Module, shadow: Shadow) -> None:
        self._unet, self._shadow = unet, shadow
        self._sites = map_unet(unet)
        self._steps: dict[MemoryPlan, tuple[int, tuple[Event, ...]]] = {}

    def __call__(self, plan: MemoryPlan, *watchers: TorchDispatchMode) -> MemoryEstimate:
        """The estimate for one plan.

        Args:
            watchers: modes that see every operation of the step, which then is not taken from the
                cache.
        """
        host, motion = self._models(plan)
        learned = list(motion.trained_parameters().values())
        same = replace(plan, accumulate=min(plan.accumulate, 2), ema=0.0, optimizer="adamw")
        if watchers or same not in self._steps:
            trace = trace_step(host, motion, plan, *watchers)
            self._steps[same] = trace.peak, tuple(trace.events)
        peak, events = self._steps[same]
        state = OPTIMIZER_BYTES[plan.optimizer]
        frozen = [p.nbytes for p in [*host.unet.parameters(), *host.unet.buffers()]]
        masters = [p.numel() * 4 for p in motion.parameters()]
        averages = [p.numel() * 4 for p in learned if plan.ema]
        moments = [int(p.numel() * state / 2) for p in learned for _ in range(2)]
        if plan.update == "offload" and plan.device != "cpu":
            moments = []  # the step has those of one parameter
        estimate = MemoryEstimate(
            plan, sum(frozen), sum(masters), sum(moments), sum(averages), activations=peak
        )
        if plan.device != "cuda":
            return estimate
        before = [*frozen, *masters, *averages]
        late = plan.update == "step"
        reserved = _reserved(before, events, peak, moments, late) + _CUDA_WORKSPACE
        return replace(estimate, cached=reserved - estimate.total)

    def _models(self, plan: MemoryPlan) -> tuple[Host, Motion]:
        """The frozen UNet and the motion on `meta`."""
        host = self._shadow(meta_copy(self._unet))
        if (half := PRECISIONS[plan.precision]) is not None:
            host.compute_in(half)
        motion = Motion(self._sites, device="meta")
        if plan.rank:
            factorise(motion, plan.rank, seed=0)
        return host, motion


def _reserved(
    before: list[int], step: tuple[Event, ...], peak: int, moments: list[int], late: bool
) -> int:
    """Bytes that a GPU's allocator reserves: `before` stays from the start on. The optimizer
    allocates its `moments` in the first step's update, if it is `late` while the gradients are
    there, else in main memory. Then the memory is arranged for the steps to come
    (`lamp.training.arena`), which allocate `peak`."""
    first, later = CachingAllocator(), CachingAllocator()
    given = _kept(before, 1)
    state = _kept(moments, len(before) + 1)
    freed = {number for number, size in step if not size}
    gradients = [(number, 0) for number, size in step if size and number not in freed]
    for events in (given, step, state if late else []):
        first.replay(events)
    for events in (given, state, [(0, int(MARGIN * peak)), (0, 0)], step, gradients, step):
        later.replay(events)
    return max(first.reserved, later.reserved)


def _kept(sizes: list[int], start: int) -> list[Event]:
    """Allocations that are never freed, with negative numbers."""
    return [(-number, size) for number, size in enumerate(sizes, start) if size]


def trace_step(
    host: Host, motion: Motion, plan: MemoryPlan, *watchers: TorchDispatchMode
) -> MemoryTrace:
    """One training step on `meta`: its memory besides weights and learned parameters.

    Args:
        watchers: modes that see every operation of the step too.
    """
    unet, learned = host.unet, list(motion.trained_parameters().values())
    with torch.inference_mode(False), torch.enable_grad(), Hooks() as stack:
        motion.requires_grad_(False)
        for parameter in learned:
            parameter.requires_grad_(True)
            parameter.grad = None
        given = [*unet.parameters(), *unet.buffers(), *motion.parameters()]
        trace = MemoryTrace(plan.device, given)
        layout = FrameLayout(plan.frames, plan.batch)
        stack.enter_context(motion.attached(unet, layout, groupnorm=plan.groupnorm))
        keep_last_norm_exact(unet, motion.sites, stack)
        if plan.gradient_checkpointing:
            stack.enter_context(checkpointed(unet, motion, plan.update != "step"))
        if plan.update != "step":
            for parameter in learned:
                hook = parameter.register_post_accumulate_grad_hook(partial(_update, plan))
                stack.callback(hook.remove)
        for mode in (trace, *watchers):
            stack.enter_context(mode)
        if plan.accumulate > 1:  # accumulated gradients live through the forward pass
            for parameter in learned:
                parameter.grad = torch.empty_like(parameter)
        size = (plan.batch * plan.frames, 4, plan.height, plan.width)
        latents, noise = (torch.empty(size, device="meta") for _ in range(2))
        timesteps = torch.zeros(plan.batch, dtype=torch.long)
        prompt_width = text_width(unet) + pooled_width(unet)
        text = torch.empty(plan.batch, plan.text_tokens, prompt_width, device="meta")
        with DeviceRules(plan.device, plan.fused):
            loss = predict_loss(host, latents, noise, timesteps, text)
            # `loss.backward()` itself would turn the rules off during recomputation.
            torch.autograd.Variable._execution_engine.run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (),
                allow_unreachable=True, accumulate_grad=True,
            )  # fmt: skip
    return trace


def _update(plan: MemoryPlan, parameter: Tensor) -> None:
    """The memory of an update during the backward pass (`lamp.training.early_updates`)."""
    if plan.update == "offload" and plan.device != "cpu":
        torch.empty(
            int(parameter.numel() * OPTIMIZER_BYTES["adamw"]), 1, dtype=torch.uint8, device="meta"
        )
    parameter.grad = None


def meta_copy(module: nn.Module) -> Any:
    """A copy without hooks on the `meta` device."""

    def empty(tensor: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(tensor, device="meta")

    return twin(module, empty, lambda name: name.endswith("_hooks"))


def gigabytes(size: float) -> str:
    """`1.5 GB`, in the units in which graphics cards are sold; below 1 GB in MB or kB."""
    if size >= GB:
        return f"{size / GB:.1f} GB"
    return f"{size / 2**20:.0f} MB" if size >= 2**20 else f"{math.ceil(size / 2**10)} kB"
