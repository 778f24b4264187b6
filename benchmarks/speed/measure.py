"""Measurements: alternating runs, floating-point operations, peak memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Runs = dict[str, Callable[[], Any]]

_MATRIX = 2048  # rows and columns of the matrix product that tells the speed of the hardware


@dataclass(frozen=True)
class Seconds:
    """Wall-clock time, and CPU time of the process on all cores."""

    wall: float
    cpu: float

    def of(self, device: str) -> float:
        """The time to compare: on a shared CPU the clock would count other programs too."""
        return self.cpu if device == "cpu" else self.wall


def timed(run: Callable[[], Any], device: str) -> Seconds:
    """Time one run."""
    finish: Any = torch.cuda.synchronize if device != "cpu" else lambda: None
    finish()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    finish()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def median(taken: list[Seconds]) -> Seconds:
    wall, cpu = ([getattr(seconds, kind) for seconds in taken] for kind in ("wall", "cpu"))
    return Seconds(statistics.median(wall), statistics.median(cpu))


def interleaved(runs: Runs, repeats: int, device: str) -> dict[str, Seconds]:
    """Medians of `repeats` runs each, in turn; each should have run once before."""
    found: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(repeats):
        # The order alternates, so that none always follows the same other one.
        for name in reversed(runs) if turn % 2 else runs:
            found[name].append(timed(runs[name], device))
    return {name: median(taken) for name, taken in found.items()}


@dataclass(frozen=True)
class Work:
    """Floating-point operations (a multiply-add is two), and the peak of allocated bytes."""

    flop: int
    peak: int


def work_of(run: Callable[[], Any], device: str) -> Work:
    """Count during one run."""
    # The counter has no formula for these in-place products.
    in_place = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), _product)
    counter = FlopCounterMode(display=False, custom_mapping=in_place)

    def counted() -> None:
        with counter:
            run()

    peak = measured_peak(counted, device)
    return Work(counter.get_total_flops(), peak)


def _product(added: Any, a: tuple[int, ...], b: tuple[int, ...], **_: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def measured_peak(run: Callable[[], object], device: str = "cpu") -> int:
    """The peak of allocated bytes during `run`, without those allocated before."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def matrix_rate(dtype: torch.dtype, device: str, repeats: int = 5) -> float:
    """FLOP per second (of `Seconds.of`) of a plain matrix product, the hardware's limit."""
    a, b = (torch.randn(_MATRIX, _MATRIX, dtype=dtype, device=device) for _ in range(2))
    torch.mm(a, b)
    taken = interleaved({"product": lambda: torch.mm(a, b)}, repeats, device)["product"]
    return 2 * _MATRIX**3 / taken.of(device)


@contextmanager
def time_inside(module: nn.Module, device: str) -> Iterator[list[float]]:
    """Collect the seconds (of `Seconds.of`) of each call of `module`."""
    begun: list[float] = []
    taken: list[float] = []

    def clock() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    handles = [
        module.register_forward_pre_hook(lambda *_: begun.append(clock())),
        module.register_forward_hook(lambda *_: taken.append(clock() - begun.pop())),
    ]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()
