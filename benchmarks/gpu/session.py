"""The state of one benchmark: its settings, remaining time, and results."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.speed.models import SD15_CONFIG, Shape
from lamp.errors import is_out_of_memory
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.toy.base import UNET_CONFIG

from .device import GB, Device
from .unet import PlainUNet

_SPREAD = 0.5  # of the square root of a layer's inputs; keeps activations in their usual range


@dataclass(frozen=True)
class Sizes:
    """What is measured; the height and width in latents."""

    config: dict[str, Any]
    shape: Shape
    repeats: int
    small: Shape
    """For comparisons in fp32."""


FULL = Sizes(SD15_CONFIG, Shape(16, 40, 64), 5, Shape(8, 16, 16))
# Narrow, because a CPU without instructions for bf16 takes 35 times as long with it.
_NARROW = {
    "block_out_channels": [32, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
TINY = Sizes(UNET_CONFIG | _NARROW, Shape(3, 8, 8), 1, Shape(3, 8, 8))


@dataclass
class Session:
    """One run of the benchmark. `rows`: the results, each with `part`, `case` and figures."""

    device: Device
    sizes: Sizes
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def half(self) -> list[str]:
        """The precisions to measure besides fp32."""
        if self.device.kind == "cuda" and not torch.cuda.is_bf16_supported():
            return ["fp16"]
        return ["bf16"] if self.device.kind == "cpu" else ["fp16", "bf16"]

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def skip(self, what: str, why: str) -> None:
        """Note what was not measured."""
        self.skipped.append(f"{what}: {why}")
        print(f"skipped: {self.skipped[-1]}", flush=True)

    def case(self, part: str, case: str, measure: Callable[[], dict[str, Any]], need: float) -> Any:
        """Measure one case, unless fewer than `need` seconds are left. A failure is noted and does
        not end the benchmark. Returns the figures, or None."""
        if self.device.kind != "cpu" and self.left() < need:
            self.skip(f"{part}, {case}", f"{self.left():.0f} s left, it may take {need:.0f} s")
            return None
        begin = time.monotonic()
        try:
            figures = measure()
        except Exception as error:
            why = str(error).strip().splitlines()
            reason = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: "
            self.skip(f"{part}, {case}", reason + ("" if reason[-1] != " " else "".join(why[:1])))
            self.device.free()
            return None
        row = {"part": part, "case": case, **figures, "took": time.monotonic() - begin}
        self.rows.append(row)
        print(_line(row), flush=True)
        return figures

    def seconds(self, run: Callable[[], object], budget: float = 30.0) -> float:
        """Median of several runs, fewer if they take more than `budget` seconds together."""
        taken = [self.device.seconds(run)]  # compiles and tunes
        end = time.monotonic() + budget
        for _ in range(self.sizes.repeats):
            taken.append(self.device.seconds(run))
            if time.monotonic() > end:
                break
        return statistics.median(taken[1:])

    def unet(self, dtype: torch.dtype) -> PlainUNet:
        """The image model with random weights, frozen."""
        with torch.device(self.device.kind):
            unet = PlainUNet(self.sizes.config)
        fill(unet, 0)
        return unet.to(dtype).requires_grad_(False).eval()

    def motion(self, unet: nn.Module, dtype: torch.dtype) -> Motion:
        """A motion with random weights, frozen."""
        motion = Motion(map_unet(unet), device=self.device.kind)
        fill(motion, 1)
        return motion.to(dtype).requires_grad_(False).eval()


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> None:
    """Random weights, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            scale = _SPREAD * parameter[0].numel() ** -0.5
            drawn = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(drawn)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.01)


def _line(row: dict[str, Any]) -> str:
    figures = (f"{name} {shown(name, value)}" for name, value in row.items()
               if name not in ("part", "case", "took") and value is not None)  # fmt: skip
    return f"{row['part']}, {row['case']}: {', '.join(figures)}"


def shown(name: str, value: Any) -> str:
    """A figure with its unit: names of bytes end in `_bytes`, those of times in `_seconds`."""
    if value is None:
        return ""
    if not isinstance(value, float | int) or isinstance(value, bool):
        return str(value)
    if name.endswith("_bytes"):
        return f"{value / GB:.2f} GiB" if value > GB / 10 else f"{value / 2**20:.1f} MiB"
    if name.endswith("_seconds"):
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:.3g}"
