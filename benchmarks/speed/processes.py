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
import subprocess
import sys
from typing import Any

import torch

from benchmarks.report import finish, parser
from lamp.hosts.diffusers.accelerate import AccelerateGroup, is_launched
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
    if is_launched():
        group = AccelerateGroup("cpu")
        taken = time_of_a_step(options, options.batch // group.count, group)
        group.leave()
        print(taken.wall, taken.cpu)
        return 0
    if any(options.batch % count for count in options.processes):
        command.error(f"--batch is {options.batch}: choose a multiple of each --processes")
    rows = [together(count, options) for count in options.processes]
    for row in rows:
        print(
            f"{row['processes']} processes: {row['seconds']:.3f} s per step, "
            f"{row['cpu_seconds']:.3f} CPU s of each process"
        )
    return finish({"benchmark": "speed_processes", "pass": True, **vars(options), "rows": rows})


def together(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run `count` processes; the slowest one gives the time of a step."""
    if count == 1:
        taken = [time_of_a_step(options, options.batch, None)]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        case = [f"--{name}={getattr(options, name)}" for name in ("batch", "frames", "steps")]
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.speed.processes", *case],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]
        told = [process.communicate()[0] for process in running]
        taken = [Seconds(*map(float, text.splitlines()[-1].split())) for text in told]
    seconds = {"seconds": max(t.wall for t in taken), "cpu_seconds": max(t.cpu for t in taken)}
    return {"processes": count, **seconds}


def time_of_a_step(
    options: argparse.Namespace, batch: int, group: AccelerateGroup | None
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
