"""Time and memory on CUDA, ROCm, XPU, MPS or a CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed.measure import measured_peak

GB = 2**30


def find_device() -> str:
    """The first of cuda (also ROCm), xpu and mps that is there; else cpu."""
    for name in ("cuda", "xpu", "mps"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            return name
    return "cpu"


@dataclass(frozen=True)
class Peak:
    """Peak of allocated bytes and of those reserved by the allocator; None if not measurable."""

    allocated: int | None
    reserved: int | None


class Device:
    """One device: `kind` is cuda, xpu, mps or cpu."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._module: Any = getattr(torch, kind)

    def describe(self) -> dict[str, Any]:
        """What the figures depend on."""
        found: dict[str, Any] = {
            "device": self.kind, "name": self.kind, "memory": None, "pytorch": torch.__version__,
            "cuda": torch.version.cuda, "rocm": torch.version.hip,
        }  # fmt: skip
        if self.kind in ("cuda", "xpu"):
            properties = self._module.get_device_properties(0)
            found |= {"name": properties.name, "memory": properties.total_memory}
        return found

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.kind != "cpu":
            self._module.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Time of one run: wall clock, on a CPU the process's own, as the clock counts others."""
        clock = time.process_time if self.kind == "cpu" else time.perf_counter
        self.synchronize()
        start = clock()
        run()
        self.synchronize()
        return clock() - start

    def peak(self, run: Callable[[], object]) -> Peak:
        """Peak during `run`, including what was allocated before (on a CPU, without it)."""
        self.free()
        if self.kind == "cpu":
            return Peak(measured_peak(run), None)
        if self.kind == "mps":
            run()
            self.synchronize()
            return Peak(None, int(self._module.driver_allocated_memory()))
        self._module.reset_peak_memory_stats()
        run()
        self.synchronize()
        return Peak(self._module.max_memory_allocated(), self._module.max_memory_reserved())

    def free(self) -> None:
        """Return unused memory to the device."""
        gc.collect()
        if self.kind != "cpu":
            self._module.empty_cache()
