"""How training scales over processes: the same batch, by one process and by several.

    python -m benchmarks.speed.processes

Each process has one thread and its share of the batch, and the gradients' mean goes between them
over gloo, as under `accelerate launch`. The toy base in diffusers. Times are medians over the
steps: by the clock, for which the machine needs a free core for each process, and CPU seconds of
the process, which tell of its share of the work but not of waiting for the others. Prints a line
for each number of processes, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from typing import Any

import torch

from lamp.hosts.diffusers.accelerate import AccelerateGroup, is_launched
from lamp.method.motion import Motion
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig

from .models import build
from .timing import timed
from .train_memory import Case, random_clips

_WARM = 2  # steps before the clock counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.speed.processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=2, help="videos of all processes together")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args(arguments)
    if is_launched():
        print(*one_of_several(options))
        return 0
    if any(options.batch % count for count in options.processes):
        parser.error(f"--batch is {options.batch}: choose a multiple of each --processes")
    rows = [together(count, options) for count in options.processes]
    for row in rows:
        print(
            f"{row['processes']} processes: {row['seconds']:.3f} s a step by the clock, "
            f"{row['cpu_seconds']:.3f} CPU s of each process"
        )
    print(json.dumps({"benchmark": "speed_processes", **vars(options), "rows": rows}))
    return 0


def together(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Start `count` processes and wait for them; the slowest tells the time of a step."""
    if count == 1:
        return _row(1, [time_of_a_step(options, options.batch, None)])
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
    return _row(count, [tuple(map(float, text.splitlines()[-1].split())) for text in told])


def _row(count: int, taken: list[tuple[float, ...]]) -> dict[str, Any]:
    seconds, cpu_seconds = (max(column) for column in zip(*taken, strict=True))
    return {"processes": count, "seconds": seconds, "cpu_seconds": cpu_seconds}


def one_of_several(options: argparse.Namespace) -> tuple[float, ...]:
    """Time of a step in this process, one of those that `together` started."""
    group = AccelerateGroup("cpu")
    taken = time_of_a_step(options, options.batch // group.count, group)
    group.leave()
    return taken


def time_of_a_step(
    options: argparse.Namespace, batch: int, group: AccelerateGroup | None
) -> tuple[float, ...]:
    """By the clock and of the CPU, with `batch` videos in this process."""
    torch.set_num_threads(1)
    subject = build("diffusers", "toy", torch.float32, "cpu")
    motion = Motion(subject.motion.sites)
    motion.load_state_dict(subject.motion.state_dict())
    clips = random_clips(Case("toy", options.frames, 16, 16, {"batch": options.batch}))
    config = TrainConfig(steps=1000, frames=options.frames, batch=batch)
    training = Training(subject.host, motion, clips, config, group)
    steps = [timed(training.advance, "cpu") for _ in range(_WARM + options.steps)][_WARM:]
    return statistics.median(t.wall for t in steps), statistics.median(t.cpu for t in steps)


if __name__ == "__main__":
    sys.exit(main())
