"""A guided call and a training step of full size on `meta`: what they hold, and their kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.speed.models import SD15_CONFIG, TEXT_TOKENS, empty_unet
from lamp.method import fused, master_weights
from lamp.method.architecture import map_unet, text_width
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.training.memory.allocator import CachingAllocator
from lamp.training.memory.estimate import Estimator, MemoryEstimate, MemoryPlan
from lamp.training.memory.trace import DeviceRules, MemoryTrace

from .kernels import Kernel, KernelList

HOSTS = ("comfy", "diffusers")


@dataclass(frozen=True)
class Shape:
    """Frames of a video, and height and width of its latents."""

    frames: int = 16
    height: int = 40
    width: int = 64


@dataclass(frozen=True)
class Run:
    """Bytes in use and reserved at the worst moment, and all kernels."""

    allocated: int
    reserved: int
    kernels: list[Kernel]

    @property
    def moved(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.bytes for kernel in self.kernels)

    @property
    def operations(self) -> int:
        return sum(kernel.operations for kernel in self.kernels)


class Subject:
    """The UNet of SD 1.5 in a host, without weights.

    Args:
        host: `comfy`, which must be importable, or `diffusers`.
        dtype: of its weights; ``computes``: in which it computes, if in another one.
    """

    def __init__(
        self,
        host: str,
        dtype: torch.dtype = torch.float16,
        computes: torch.dtype | None = None,
        config: dict[str, Any] = SD15_CONFIG,
    ) -> None:
        self.dtype, self.ops = computes or dtype, master_weights
        self.host: Host
        if host == "comfy":
            self.host, shadow, self.ops = _comfy_host(config, dtype, computes)
        else:
            from lamp.hosts.diffusers.unet import shadow_host

            shadow = shadow_host
            self.host = shadow_host(empty_unet(config).to(dtype))
        self._estimator = Estimator(self.host.unet, shadow)

    def guided_call(self, motion: bool, videos: int = 2, shape: Shape | None = None) -> Run:
        """A call of the UNet for `videos` videos, with a motion or of the image model alone."""
        shape = shape or Shape()
        unet, images = self.host.unet, videos * shape.frames
        learned = Motion(map_unet(unet), self.ops, dtype=self.dtype, device="meta")
        learned.requires_grad_(False)
        given = [*unet.parameters(), *unet.buffers(), *(learned.parameters() if motion else ())]
        x = torch.empty(images, 4, shape.height, shape.width, device="meta", dtype=self.dtype)
        text = torch.empty(videos, TEXT_TOKENS, text_width(unet), device="meta", dtype=self.dtype)
        trace, kernels = MemoryTrace("cuda", given), KernelList()
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if motion:
                layout = FrameLayout(shape.frames, videos)
                stack.enter_context(learned.attached(unet, layout))
            for mode in (fused.only_on("meta"), trace, kernels, DeviceRules("cuda")):
                stack.enter_context(mode)
            self.host.predict(x, torch.zeros(videos, dtype=torch.long), text)
        weights = sum(p.nbytes for p in given)
        allocator = CachingAllocator()
        allocator.replay((-number, p.nbytes) for number, p in enumerate(given, 1) if p.nbytes)
        return Run(weights + trace.peak, allocator.replay(trace.events), kernels.kernels)

    def training_step(self, plan: MemoryPlan) -> Run:
        """A training step; its kernels are those before the optimizer's update."""
        kernels = KernelList()
        estimate = self._estimator(plan, kernels)
        return Run(estimate.allocated, estimate.total, kernels.kernels)

    def estimate(self, plan: MemoryPlan) -> MemoryEstimate:
        """The memory of a training step alone."""
        return self._estimator(plan)


def _comfy_host(
    config: dict[str, Any], dtype: torch.dtype, computes: torch.dtype | None
) -> tuple[Host, Callable[..., Host], Any]:
    import comfy.model_patcher
    import comfy.ops

    from lamp.hosts.comfy.memory import ShadowHost
    from lamp.hosts.comfy.models import empty_model
    from lamp.hosts.comfy.training import ComfyHost

    cpu = torch.device("cpu")
    model = empty_model(config, dtype, computes, "meta")
    host = ComfyHost(comfy.model_patcher.ModelPatcher(model, cpu, cpu))
    return host, lambda unet: ShadowHost(host, unet), comfy.ops.manual_cast


PLAIN = "guided call, image model"
CALL = "guided call, motion"
IMAGE_CALL = "unguided call, motion"
STEP = "training, bf16"
FP16_STEP = "training, fp16"
EIGHT_BIT = "training, bf16, 8-bit AdamW"
EIGHT_BIT_FP8 = "training, bf16, 8-bit AdamW, fp8 model"
EARLY = f"{EIGHT_BIT}, update backward"
EARLY_FP8 = f"{EIGHT_BIT_FP8}, update backward"
OFFLOADED = f"{STEP}, update offload"
UNCHECKPOINTED = "training, bf16, checkpointing off"
_PLAN = MemoryPlan(frames=16, precision="bf16", gradient_checkpointing=True)


@dataclass(frozen=True)
class Runs:
    """Simulated runs by name: those whose kernels were listed, and estimates of training steps."""

    traced: dict[str, Run]
    steps: dict[str, MemoryEstimate]

    @property
    def plain(self) -> Run:
        return self.traced[PLAIN]

    @property
    def lamp(self) -> Run:
        return self.traced[CALL]


def simulate(host: str, leave_out: Collection[str] = ()) -> Runs:
    """Simulate everything in a host, see `Subject`, but for the training steps of some names."""
    subject = Subject(host)
    traced = {
        PLAIN: subject.guided_call(motion=False),
        CALL: subject.guided_call(motion=True),
        IMAGE_CALL: subject.guided_call(motion=True, videos=1),
        STEP: subject.training_step(_PLAN),
    }
    compact = replace(_PLAN, optimizer="adamw8bit")
    plans = {
        STEP: (subject, _PLAN),
        FP16_STEP: (subject, replace(_PLAN, precision="fp16")),
        EIGHT_BIT: (subject, compact),
        EARLY: (subject, replace(compact, update="backward")),
        OFFLOADED: (subject, replace(_PLAN, update="offload")),
        UNCHECKPOINTED: (subject, replace(_PLAN, gradient_checkpointing=False)),
    }
    if host == "comfy":  # diffusers does not compute with fp8 weights
        packed = Subject(host, torch.float8_e4m3fn, torch.bfloat16)
        plans[EIGHT_BIT_FP8] = packed, compact
        plans[EARLY_FP8] = packed, replace(compact, update="backward")
    steps = {
        name: model.estimate(plan) for name, (model, plan) in plans.items() if name not in leave_out
    }
    return Runs(traced, steps)
