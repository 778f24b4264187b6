"""Does tuning take the memory that the estimate says?

    python -m benchmarks.speed.train_memory                on the CPU: the toy base on both hosts
    python -m benchmarks.speed.train_memory --full-width   SD 1.x widths too (16 GB)
    python -m benchmarks.speed.train_memory --device cuda  on a GPU, and at 16 x 320 x 512 too

Each case builds a frozen UNet and a motion and takes two steps of the real training loop, while
PyTorch's own allocator is watched: `torch.cuda.max_memory_allocated` on a GPU, the allocator's
events in `torch.profiler` on the CPU. Before it stands the estimate, made from shapes. Prints one
line a case, then estimates for SD 1.x at 16 x 320 x 512 (random weights need no download, and the
memory does not depend on them), and last one line of JSON. Exit status 0 only if every estimate is
within 15 % of what was measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lamp.clips.load import clips_from_images
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import map_unet
from lamp.method.host import Host
from lamp.method.motion import Motion
from lamp.toy.base import UNET_CONFIG, toy_state
from lamp.training.latents import LatentClips, cache_latents
from lamp.training.loop import train
from lamp.training.memory.estimate import GB, OPTIMIZER_BYTES, Estimator, MemoryEstimate, MemoryPlan
from lamp.training.recipe import TrainConfig
from scripts.server.host import HostMissing, make_base_directory, use_host

TOLERANCE = 0.15
# Stable Diffusion 1.5's own config.
SD15_CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


@dataclass(frozen=True)
class Case:
    """One run to measure. `settings` are those of `TrainConfig`."""

    model: str
    frames: int
    height: int
    width: int
    settings: dict[str, Any] = field(default_factory=dict)
    weights: torch.dtype = torch.float32

    @property
    def pixels(self) -> int:
        return 8 if self.model == "sd15" else 2

    @property
    def text_width(self) -> int:
        return 768 if self.model == "sd15" else 64

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(steps=2, frames=self.frames, **self.settings)

    def plan(self, device: str) -> MemoryPlan:
        others = {"device": device, "pixels": self.pixels, "weights_dtype": self.weights}
        return MemoryPlan.of(self.config, self.height, self.width, **others)

    def describe(self) -> str:
        settings = [f"{name} {value}" for name, value in self.settings.items()]
        size = f"{self.frames} x {self.height * self.pixels} x {self.width * self.pixels}"
        return ", ".join([f"{self.model:10} {size:14}", *settings])


TOY_CASES = [
    Case("toy", 4, 16, 16),
    Case("toy", 8, 16, 16),
    Case("toy", 8, 16, 16, {"gradient_checkpointing": True}),
    Case("toy", 16, 16, 16, {"gradient_checkpointing": True, "ema": 0.99}),
    Case("toy", 8, 16, 16, {"batch": 2}),
    Case("toy", 8, 16, 16, {"batch": 2, "gradient_checkpointing": True, "ema": 0.99}),
    Case("toy", 4, 8, 8, {"accumulate": 2, "ema": 0.99}),
    Case("toy", 8, 16, 16, {"precision": "bf16"}),
    Case("toy", 8, 16, 16, {"precision": "bf16", "gradient_checkpointing": True}),
]
COMFY_CASES = [
    Case("toy-comfy", 4, 16, 16),
    Case("toy-comfy", 4, 16, 16, {"batch": 2, "gradient_checkpointing": True}),
    Case("toy-comfy", 4, 16, 16, {"precision": "bf16"}),
]
WIDE_CASES = [
    Case("sd15", 2, 8, 8),
    Case("sd15", 2, 16, 16),
    Case("sd15", 4, 16, 16),
    Case("sd15", 4, 16, 16, {"gradient_checkpointing": True}),
    Case("sd15", 4, 16, 16, {"gradient_checkpointing": True, "ema": 0.99}),
]
GPU_CASES = [
    Case(
        "sd15",
        16,
        40,
        64,
        {"precision": "bf16", "gradient_checkpointing": on, **more},
        torch.bfloat16,
    )
    for on in (True, False)
    for more in ({}, {"ema": 0.99})
]

# --- what is measured -----------------------------------------------------------------------------


def measured_peak(run: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes that were allocated at once while `run` ran, besides those of before."""
    return _peak_on_gpu(run) if device == "cuda" else _peak_on_cpu(run)


def _peak_on_gpu(run: Callable[[], object]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(run: Callable[[], object]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(case: Case, device: str) -> int:
    """Bytes at the worst moment of two steps, those of the frozen model included."""
    clips = random_clips(case)

    def run() -> None:
        with _host(case, device) as host:
            motion = Motion(map_unet(host.unet), device=device).initialise(0)
            train(host, motion, clips, case.config)

    peak = measured_peak(run, device)
    gc.collect()
    return peak


def random_clips(case: Case) -> LatentClips:
    """As many clips of noise as a batch has, of the case's size."""
    count, latent = case.config.batch, (4, case.height, case.width)
    height, width = case.height * case.pixels, case.width * case.pixels
    images = [torch.rand(case.frames, height, width, 3) for _ in range(count)]
    clips = clips_from_images(images, ["noise"] * count, case.frames, width, height)

    def encode(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (frames.shape[0], *latent)
        return torch.randn(shape), torch.ones(shape)

    def embed(prompts: list[str]) -> dict[str, torch.Tensor]:
        return {prompt: torch.randn(1, 77, case.text_width) for prompt in prompts}

    return cache_latents(clips, encode, embed)


@contextmanager
def _host(case: Case, device: str) -> Iterator[Host]:
    if case.model == "toy-comfy":
        from lamp.hosts.comfy.training import tuning_host

        with tuning_host(_comfy_toy()) as host:
            yield host
    else:
        yield DiffusersHost(_diffusers_unet(case, device))


def _diffusers_unet(case: Case, device: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device(device):
        unet = UNet2DConditionModel(**(SD15_CONFIG if case.model == "sd15" else UNET_CONFIG))
    unet.requires_grad_(False).eval()
    return unet if case.weights == torch.float32 else unet.to(case.weights)


def _comfy_toy() -> Any:
    from lamp.hosts.comfy.models import build_patcher

    state = toy_state()
    weights = {name: tensor.float() for name, tensor in state["unet"].items()}
    return build_patcher(state["metadata"]["unet"], weights)


# --- beside the estimate --------------------------------------------------------------------------


class Estimates:
    """One estimator a model; those for diffusers see a UNet that has no memory at all."""

    def __init__(self) -> None:
        self._estimators: dict[str, Estimator] = {}

    def __call__(self, case: Case, device: str) -> MemoryEstimate:
        if case.model not in self._estimators:
            comfy = case.model == "toy-comfy"
            shapes = replace(case, weights=torch.float32)  # the plan says what they are
            unet = _comfy_toy().model.diffusion_model if comfy else _diffusers_unet(shapes, "meta")
            self._estimators[case.model] = Estimator(unet, map_unet(unet))
        return self._estimators[case.model](case.plan(device))


def compare(cases: list[Case], device: str, estimates: Estimates) -> list[dict[str, Any]]:
    """One line a case."""
    rows = []
    for case in cases:
        estimated, measured = estimates(case, device).total, measure(case, device)
        error = estimated / measured - 1
        rows.append(
            {"case": case.describe(), "estimate": estimated, "measured": measured, "error": error}
        )
        print(
            f"{case.describe():66} estimate {estimated / 2**20:9.1f} MB   measured "
            f"{measured / 2**20:9.1f} MB   {error:+7.2%}",
            flush=True,
        )
    return rows


def show_goal(estimates: Estimates) -> list[dict[str, Any]]:
    """Estimates for SD 1.x on a GPU at 16 x 320 x 512, model and activations in bf16."""
    print("\nSD 1.x at 16 x 320 x 512 on a GPU, bf16, batch 1, by estimate (GB):")
    parts = ("weights", "learned", "gradients", "optimizer", "saved", "transient", "total")
    print(" " * 32 + "".join(f"{part:>11}" for part in parts))
    rows = []
    for gradient_checkpointing in (False, True):
        for optimizer in OPTIMIZER_BYTES:
            settings = {
                "precision": "bf16",
                "gradient_checkpointing": gradient_checkpointing,
                "optimizer": optimizer,
            }
            case = Case("sd15", 16, 40, 64, settings, torch.bfloat16)
            estimate = estimates(case, "cuda")
            name = f"checkpointing {'on' if gradient_checkpointing else 'off'}, {optimizer}"
            sizes = [getattr(estimate, part) for part in parts]
            print(f"{name:32}" + "".join(f"{size / GB:11.2f}" for size in sizes), flush=True)
            rows.append({"settings": settings, "total": estimate.total})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full-width", action="store_true", help="cases of SD 1.x's widths")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [*TOY_CASES, *(WIDE_CASES if arguments.full_width else [])]
    if arguments.device == "cuda":
        cases += GPU_CASES
    estimates = Estimates()
    with tempfile.TemporaryDirectory() as base:
        if arguments.device == "cpu":
            try:
                use_host(make_base_directory(Path(base)))
                cases += COMFY_CASES
            except HostMissing as missing:
                print(f"without ComfyUI's UNet: {missing}")
        rows = compare(cases, arguments.device, estimates)
    goal = show_goal(estimates)
    worst = max(rows, key=lambda row: abs(row["error"]))
    passed = abs(worst["error"]) <= TOLERANCE
    print(
        json.dumps(
            {
                "benchmark": "train_memory",
                "pass": passed,
                "device": arguments.device,
                "cases": len(rows),
                "worst_error": round(worst["error"], 4),
                "worst_case": worst["case"],
                "goal": goal,
            }
        )
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
