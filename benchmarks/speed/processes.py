"""Training speed with several processes: the same batch, by one process and by several.

    python -m benchmarks.speed.processes

Each process has one thread and its share of the batch; gradients are averaged over gloo, as under
`accelerate launch`. Uses the toy base in diffusers. Times are medians over the steps: wall-clock
time, which needs a free core per process, and CPU time of the process, which does not count waiting
for the others. Prints a line for each number of processes, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from typing import Any

import torch
from torch import multiprocessing

from benchmarks.report import finish, parser
from lamp.hosts.diffusers.accelerate import AccelerateGroup
from lamp.training.recipe import TrainConfig

from .measure import Seconds, median, timed
from .models import Shape, build
from .runs import training_of

_WARM = 2  # steps before timing


def main(arguments: list[str] | None = None) -> int:
    command = parser("speed.processes", __doc__)
    command.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    command.add_argument("--batch", type=int, default=2, help="videos of all processes together")
    command.add_argument("--frames", type=int, default=16)
    command.add_argument("--steps", type=int, default=7)
    options = command.parse_args(arguments)
    if any(options.batch % count for count in options.processes):
        command.error(f"--batch is {options.batch}: choose a multiple of each --processes")
    rows = []
    for count in options.processes:
        taken = together(count, options)
        seconds, cpu_seconds = max(t.wall for t in taken), max(t.cpu for t in taken)
        rows.append({"processes": count, "seconds": seconds, "cpu_seconds": cpu_seconds})
        print(
            f"{count} processes: {seconds:.3f} s per step, {cpu_seconds:.3f} CPU s of each process"
        )
    return finish({"benchmark": "speed_processes", "pass": True, **vars(options), "rows": rows})


def together(count: int, options: argparse.Namespace) -> list[Seconds]:
    """The time of a step in each of `count` processes that share the batch."""
    if count == 1:
        return [time_of_a_step(options, options.batch)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    times = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(_one_of_several, (count, port, options, times), nprocs=count)
    return [times.get() for _ in range(count)]


def _one_of_several(
    rank: int, count: int, port: str, options: argparse.Namespace, times: Any
) -> None:
    """A process as `accelerate launch` starts it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    group = AccelerateGroup("cpu")
    times.put(time_of_a_step(options, options.batch // count, group))
    group.leave()


def time_of_a_step(
    options: argparse.Namespace, batch: int, group: AccelerateGroup | None = None
) -> Seconds:
    """Median time of a step with `batch` videos in this process."""
    torch.set_num_threads(1)
    subject = build("diffusers", "toy", torch.float32, "cpu")
    config = TrainConfig(steps=1000, frames=options.frames, batch=batch)
    shape = Shape(options.frames, 16, 16, options.batch)
    training = training_of(subject, "toy", shape, config, group)
    return median([timed(training.advance, "cpu") for _ in range(_WARM + options.steps)][_WARM:])


if __name__ == "__main__":
    sys.exit(main())
