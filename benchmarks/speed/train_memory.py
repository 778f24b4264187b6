"""The memory estimate of training, compared with measurements.

    python -m benchmarks.speed.train_memory                on a CPU: the toy base on both hosts
    python -m benchmarks.speed.train_memory --full-width   SD 1.x widths too (16 GB)
    python -m benchmarks.speed.train_memory --device cuda  on a GPU, also at 16 x 320 x 512

Each case builds a frozen UNet and a motion and runs two steps of the real training loop under
PyTorch's allocator statistics: `torch.cuda.max_memory_allocated` on a GPU, memory events of
`torch.profiler` on a CPU. The estimate is computed from shapes alone. Weights are random, since
memory does not depend on them. Prints a line per case, then estimates for SD 1.x at 16 x 320 x 512,
and last one line of JSON. Exit status 0 only if every estimate is within 15 % of the measurement.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Table, finish, parser
from lamp.hosts.diffusers.unet import DiffusersHost, shadow_host
from lamp.method.architecture import map_unet
from lamp.method.host import Host
from lamp.method.motion import Motion
from lamp.toy.base import toy_state
from lamp.training.loop import train
from lamp.training.memory.estimate import GB, Estimator, MemoryEstimate, MemoryPlan
from lamp.training.recipe import TrainConfig
from scripts.server.host import HostMissing, make_base_directory, use_host

from .measure import measured_peak
from .models import SIZES, Shape, empty_unet, random_clips

TOLERANCE = 0.15


@dataclass(frozen=True)
class Case:
    """One run to measure; height and width in latents, `settings` of `TrainConfig`."""

    model: str
    frames: int
    height: int
    width: int
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> str:
        return "full" if self.model == "sd15" else "toy"

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(steps=2, frames=self.frames, **self.settings)

    def plan(self, device: str) -> MemoryPlan:
        size = {"height": self.height, "width": self.width, "pixels": SIZES[self.size].stride}
        return MemoryPlan(**vars(self.config), **size, device=device)

    def describe(self) -> str:
        height, width = (side * SIZES[self.size].stride for side in (self.height, self.width))
        settings = [f"{name} {value}" for name, value in self.settings.items()]
        return ", ".join([f"{self.model} {self.frames} x {height} x {width}", *settings])


_CKPT, _BF16, _EMA = {"gradient_checkpointing": True}, {"precision": "bf16"}, {"ema": 0.99}
TOY_CASES = [
    Case("toy", 4, 16, 16),
    Case("toy", 8, 16, 16),
    Case("toy", 8, 16, 16, _CKPT),
    Case("toy", 16, 16, 16, _CKPT | _EMA),
    Case("toy", 8, 16, 16, {"batch": 2}),
    Case("toy", 8, 16, 16, {"batch": 2} | _CKPT | _EMA),
    Case("toy", 4, 8, 8, {"accumulate": 2} | _EMA),
    Case("toy", 8, 16, 16, _BF16),
    Case("toy", 8, 16, 16, _BF16 | _CKPT),
]
COMFY_CASES = [
    Case("toy-comfy", 4, 16, 16),
    Case("toy-comfy", 4, 16, 16, {"batch": 2} | _CKPT),
    Case("toy-comfy", 4, 16, 16, _BF16),
]
WIDE_CASES = [
    Case("sd15", 2, 8, 8),
    *(Case("sd15", frames, 16, 16, more)
      for frames, more in ((2, {}), (4, {}), (4, _CKPT), (4, _CKPT | _EMA))),
]  # fmt: skip
GPU_CASES = [
    Case("sd15", 16, 40, 64, _BF16 | {"gradient_checkpointing": on} | more)
    for on in (True, False)
    for more in ({}, _EMA)
]


def measure(case: Case, device: str) -> int:
    """Peak bytes of two steps, frozen model included."""
    shape = Shape(case.frames, case.height, case.width, case.config.batch)
    clips = random_clips(case.size, shape)

    def run() -> None:
        with _host(case, device) as host:
            motion = Motion(map_unet(host.unet), device=device).initialise(0)
            train(host, motion, clips, case.config)

    peak = measured_peak(run, device)
    gc.collect()
    return peak


@contextmanager
def _host(case: Case, device: str) -> Iterator[Host]:
    if case.model == "toy-comfy":
        from lamp.hosts.comfy.training import tuning_host

        with tuning_host(_comfy_toy()) as host:
            yield host
    else:
        yield DiffusersHost(empty_unet(SIZES[case.size].config, device))


def _comfy_toy() -> Any:
    from lamp.hosts.comfy.models import build_patcher

    state = toy_state()
    weights = {name: tensor.float() for name, tensor in state["unet"].items()}
    return build_patcher(state["metadata"]["unet"], weights)


class Estimates:
    """One estimator per model; those for diffusers use a UNet on `meta`, which takes no memory."""

    def __init__(self) -> None:
        self._estimators: dict[str, Estimator] = {}

    def __call__(self, case: Case, device: str) -> MemoryEstimate:
        if case.model not in self._estimators:
            if case.model == "toy-comfy":
                self._estimators[case.model] = _comfy_estimator()
            else:
                unet = empty_unet(SIZES[case.size].config)
                self._estimators[case.model] = Estimator(unet, shadow_host)
        return self._estimators[case.model](case.plan(device))


def _comfy_estimator() -> Estimator:
    from lamp.hosts.comfy.memory import ShadowHost
    from lamp.hosts.comfy.training import ComfyHost

    host = ComfyHost(_comfy_toy())
    return Estimator(host.unet, lambda unet: ShadowHost(host, unet))


def compare(cases: list[Case], device: str, estimates: Estimates) -> list[dict[str, Any]]:
    """Estimate and measure all cases."""
    table, rows = Table({"case": 60}, ("estimate, MB", "measured, MB", "error"), 14, 3), []
    for case in cases:
        estimated, measured = estimates(case, device).total, measure(case, device)
        row = {"estimate": estimated, "measured": measured, "error": estimated / measured - 1}
        rows.append({"case": case.describe(), **row})
        table.row(case.describe(), estimated / 2**20, measured / 2**20, row["error"])
    return rows


def show_goal(estimates: Estimates) -> list[dict[str, Any]]:
    """Estimates for SD 1.x on a GPU at 16 x 320 x 512, model and activations in bf16."""
    parts = ("model", "motion", "optimizer", "activations", "total")
    print("\nEstimates for SD 1.x at 16 x 320 x 512 on a GPU, bf16, batch 1, in GB:")
    table, rows = Table({"settings": 34}, parts, 11), []
    for checkpointing in (False, True):
        for optimizer in ("adamw", "adamw8bit"):
            settings = _BF16 | {"gradient_checkpointing": checkpointing, "optimizer": optimizer}
            estimate = estimates(Case("sd15", 16, 40, 64, settings), "cuda")
            name = f"checkpointing {'on' if checkpointing else 'off'}, {optimizer}"
            table.row(name, *(getattr(estimate, part) / GB for part in parts))
            rows.append({"settings": settings, "total": estimate.total})
    return rows


def main() -> int:
    command = parser("speed.train_memory", __doc__)
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--full-width", action="store_true", help="also SD 1.x widths")
    arguments = command.parse_args()
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
    worst = max(rows, key=lambda row: abs(row["error"]))
    found = {"benchmark": "train_memory", "pass": abs(worst["error"]) <= TOLERANCE}
    found |= {"device": arguments.device, "cases": len(rows), "worst_case": worst["case"]}
    found |= {"worst_error": round(worst["error"], 4), "goal": show_goal(estimates)}
    return finish(found)


if __name__ == "__main__":
    sys.exit(main())
