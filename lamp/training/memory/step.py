"""One tuning step on the `meta` device: the step that `Training` takes, in shapes only."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...hosts.diffusers.unet import DiffusersHost
from ...method.architecture import SiteMap, pooled_width, text_width
from ...method.attention import torch_attention
from ...method.host import Host
from ...method.layout import FrameLayout
from ...method.motion import Motion
from ...method.schedule import scaled_linear_alphas
from ..gradient_checkpointing import checkpointed
from ..loop import predict_loss
from ..low_rank import factorise
from ..recipe import PRECISIONS
from ..twins import twin
from .trace import DeviceRules, MemoryTrace


@dataclass(frozen=True)
class Shapes:
    """All that the activations of a step depend on; see `MemoryPlan` for the fields."""

    frames: int
    height: int
    width: int
    batch: int
    text_tokens: int
    precision: str
    computed: torch.dtype
    gradient_checkpointing: bool
    groupnorm: str
    device: str
    fused: bool
    gradients_kept: bool
    rank: int


@dataclass(frozen=True)
class StepMemory:
    """Bytes besides weights and learned parameters: kept for the backward pass when the forward
    pass ends, at the worst moment, and how much of that is gradients of learned parameters."""

    saved: int
    peak: int
    gradients: int


def meta_copy(module: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """`twin` without hooks on the `meta` device.

    `dtype` replaces the type of floating-point tensors.
    """

    def empty(tensor: Tensor, *_: Any) -> Tensor:
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, dtype=kind, device="meta")

    return twin(module, empty, lambda name: name.endswith("_hooks"))


def shadow_motion(sites: SiteMap, rank: int) -> Motion:
    """The motion that a run learns, in shapes only."""
    motion = Motion(sites, device="meta")
    if rank:
        factorise(motion, rank, seed=0)
    return motion


def measure_step(unet: nn.Module, sites: SiteMap, text_width: int, shapes: Shapes) -> StepMemory:
    """The memory of one step.

    Args:
        unet: from `meta_copy`.
        sites: of the UNet.
    """
    with torch.inference_mode(False), torch.enable_grad():
        motion = shadow_motion(sites, shapes.rank).requires_grad_(False)
        learned = list(motion.trained_parameters().values())
        for parameter in learned:
            parameter.requires_grad_(True)
            if shapes.gradients_kept:
                parameter.grad = torch.empty_like(parameter)
        given = [*unet.parameters(), *unet.buffers(), *motion.parameters()]
        trace = MemoryTrace(shapes.device, given)
        trace.watch_gradients(learned)
        return _follow(trace, unet, motion, text_width, shapes)


def _follow(
    trace: MemoryTrace, unet: nn.Module, motion: Motion, text_width: int, shapes: Shapes
) -> StepMemory:
    kept = sum(p.grad.nbytes for p in motion.parameters() if p.grad is not None)
    rules = DeviceRules(shapes.device, PRECISIONS[shapes.precision], shapes.fused)
    layout = FrameLayout(shapes.frames, shapes.batch)
    host = _host(unet, shapes.computed)
    timesteps = torch.zeros(shapes.batch, dtype=torch.long)
    with ExitStack() as stack:
        stack.enter_context(motion.attached(unet, layout, groupnorm=shapes.groupnorm))
        if shapes.gradient_checkpointing:
            stack.enter_context(checkpointed(unet, motion))
        stack.enter_context(trace)
        size = (shapes.batch * shapes.frames, 4, shapes.height, shapes.width)
        latents, noise = (torch.empty(size, device="meta") for _ in range(2))
        prompt_width = text_width + pooled_width(unet)
        text = torch.empty(shapes.batch, shapes.text_tokens, prompt_width, device="meta")
        with rules:
            loss = predict_loss(host, latents, noise, timesteps, text)
        rules.end_forward()
        saved = trace.held
        with rules:
            _backward(loss)
    return StepMemory(saved, trace.peak + kept, kept or trace.peak_gradients)


def _backward(loss: Tensor) -> None:
    """`loss.backward()`, of which a function mode would take hold: it would then be off in what
    checkpointing computes again."""
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _host(unet: nn.Module, computed: torch.dtype) -> Host:
    return _ComfyShadow(unet, computed) if hasattr(unet, "input_blocks") else DiffusersHost(unet)


class _ComfyShadow:
    """ComfyUI's UNet as `ComfyHost` runs it."""

    def __init__(self, unet: nn.Module, computed: torch.dtype) -> None:
        self.unet, self._dtype, self.v_prediction = unet, computed, False
        self.alphas_cumprod = scaled_linear_alphas()
        self._text_width = text_width(unet)

    def predict(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        videos = timesteps.shape[0]
        frames = x.shape[0] // videos
        noise = self.unet(
            x.to(self._dtype),
            timesteps.to(x.device).repeat_interleave(frames).float(),
            context=text[..., : self._text_width].to(self._dtype).repeat_interleave(frames, dim=0),
            y=self._vector(x),
            transformer_options={
                "cond_or_uncond": [0] * videos,
                "optimized_attention_override": torch_attention,
            },
        )
        return noise.float()

    def _vector(self, x: Tensor) -> Tensor | None:
        """What SD-XL is told beside the text."""
        if self.unet.num_classes is None:
            return None
        return torch.empty(x.shape[0], self.unet.label_emb[0][0].in_features, device="meta").to(
            self._dtype
        )
