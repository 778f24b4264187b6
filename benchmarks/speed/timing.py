"""Measuring for `benchmarks.speed`: interleaved runs, floating-point operations, peak memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .train_memory import measured_peak

Runs = dict[str, Callable[[], Any]]

_MATRIX = 2048  # rows and columns of the product that tells the hardware's rate


@dataclass(frozen=True)
class Seconds:
    """Medians over the repeats: time by the clock, and time of the process on all its cores."""

    wall: float
    cpu: float

    def of(self, device: str) -> float:
        """What is compared: on a CPU that others use too, the clock tells of them as well."""
        return self.cpu if device == "cpu" else self.wall


def interleaved(runs: Runs, repeats: int, device: str) -> dict[str, Seconds]:
    """Time each run `repeats` times, in turn; each should have run once before."""
    found: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(repeats):
        # Back and forth, so that none always comes after the same other.
        for name in reversed(runs) if turn % 2 else runs:
            found[name].append(timed(runs[name], device))
    return {
        name: Seconds(
            statistics.median(taken.wall for taken in several),
            statistics.median(taken.cpu for taken in several),
        )
        for name, several in found.items()
    }


def timed(run: Callable[[], Any], device: str) -> Seconds:
    """One run."""
    finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    finish(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def finish(device: str) -> None:
    """Wait for what was asked of a GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Work:
    """What a run takes besides time.

    - ``flop``: floating-point operations of products and convolutions; a multiplication and its
      addition are two;
    - ``peak``: the most bytes allocated at once, beside those of before.
    """

    flop: int
    peak: int


def work_of(run: Callable[[], Any], device: str) -> Work:
    """Count while it runs once."""
    # The counter knows products, but not that these also come in place.
    in_place = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), _product)
    counter = FlopCounterMode(display=False, custom_mapping=in_place)

    def counted() -> None:
        with counter:
            run()

    peak = measured_peak(counted, device)
    return Work(counter.get_total_flops(), peak)


def _product(added: Any, a: tuple[int, ...], b: tuple[int, ...], **_: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def matrix_rate(dtype: torch.dtype, device: str, repeats: int = 5) -> float:
    """FLOP a second (of `Seconds.of`) of a plain matrix product: the most that can be had here."""
    a, b = (torch.randn(_MATRIX, _MATRIX, dtype=dtype, device=device) for _ in range(2))
    torch.mm(a, b)
    taken = interleaved({"product": lambda: torch.mm(a, b)}, repeats, device)["product"]
    return 2 * _MATRIX**3 / taken.of(device)


class Share:
    """How much of a run is spent in a module: `with share.watched(unet): run()`."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.inside = 0.0
        self._since = 0.0

    @contextmanager
    def watched(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Add up the time in `modules`, by the clock of `Seconds.of`."""

        def enter(*_: Any) -> None:
            self._since = self._now()

        def leave(*_: Any) -> None:
            self.inside += self._now() - self._since

        handles = [
            handle
            for module in modules
            for handle in (
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> float:
        finish(self._device)
        return time.process_time() if self._device == "cpu" else time.perf_counter()
