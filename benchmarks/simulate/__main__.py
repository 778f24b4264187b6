"""Simulated GPU memory and kernels of SD 1.5 at 16 frames of 512 x 320, without a GPU.

    python -m benchmarks.simulate                    in ComfyUI
    python -m benchmarks.simulate --host diffusers
    python -m benchmarks.simulate --kernels          also which kernels a motion adds, by time

The real modules and PyTorch's real autograd run on the `meta` device, which has shapes but no
memory (`lamp/training/memory/trace.py`). Memory is counted by the lifetimes of tensors and the
scratch memory of cuDNN and FlashAttention, and once more as PyTorch's allocator reserves it. Times
are a roofline (`cards.py`): what each kernel takes at the card's usual share of its speed and
bandwidth. They rank changes; they do not predict seconds.

Prints memory, kernels and times, the goals as ratios to the image model alone, and last one line
of JSON. Exit status 0 only if every goal is reached. Takes about 30 s.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Table, finish, parser
from lamp.training.memory.estimate import GB
from scripts.server.host import make_base_directory, use_host

from .cards import CARDS
from .goals import goals, reached
from .runs import HOSTS, Run, Runs, simulate


def show(runs: Runs) -> None:
    """Tables of memory, kernels and times."""
    columns = ("allocated, GiB", "reserved, GiB", "kernels", "moved, GB", "TFLOP")
    table = Table({"run": 63}, (*columns, *(f"{card.name}, ms" for card in CARDS)), 15)
    for name, run in runs.traced.items():
        memory = (run.allocated / GB, run.reserved / GB)
        numbers = (f"{len(run.kernels)}", run.moved / 1e9, run.operations / 1e12)
        table.row(name, *memory, *numbers, *(1e3 * card.seconds(run.kernels) for card in CARDS))
    for name, estimate in runs.steps.items():
        if name not in runs.traced:
            table.row(name, estimate.allocated / GB, estimate.total / GB)


def show_kernels(plain: Run, lamp: Run) -> None:
    """The kernels that a motion adds to a call, by time on each card."""
    for card in CARDS:
        whole = card.seconds(plain.kernels)
        count: Counter[str] = Counter()
        seconds: defaultdict[str, float] = defaultdict(float)
        for sign, run in ((1, lamp), (-1, plain)):
            for kernel in run.kernels:
                count[kernel.name] += sign
                seconds[kernel.name] += sign * card.seconds([kernel])
        print(f"\nAdded by a motion on the {card.name}, in ms and as a share of the plain call:")
        table = Table({"kernel": 48, "number": 8}, ("ms", "%"))
        for name, time in sorted(seconds.items(), key=lambda item: -abs(item[1])):
            if abs(time) > 0.002 * whole:
                table.row(name, str(count[name]), 1e3 * time, 100 * time / whole)


def main() -> int:
    command = parser("simulate", __doc__)
    command.add_argument("--host", choices=HOSTS, default=HOSTS[0])
    command.add_argument("--kernels", action="store_true", help="list what a motion adds")
    arguments = command.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base:
        if arguments.host == "comfy":
            use_host(make_base_directory(Path(base)))
        runs = simulate(arguments.host)
    show(runs)
    if arguments.kernels:
        show_kernels(runs.plain, runs.lamp)
    found: dict[str, Any] = {"benchmark": "simulate", "host": arguments.host}
    print()
    table = Table({"ratio to the image model": 44, "reached": 8}, ("ratio", "goal"))
    measured = goals(runs)
    for goal in measured:
        table.row(goal.name, "yes" if reached(goal) else "no", goal.ratio, goal.goal)
    found["pass"] = all(map(reached, measured))
    found["ratios"] = {goal.name: round(goal.ratio, 4) for goal in measured}
    found["goals"] = {goal.name: goal.goal for goal in measured}
    return finish(found)


if __name__ == "__main__":
    sys.exit(main())
