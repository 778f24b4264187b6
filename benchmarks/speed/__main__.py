"""Speed and memory of this project, the plain image UNet, and the official layout.

    python -m benchmarks.speed                                  one guided call of a full-size UNet
    python -m benchmarks.speed --what sample --size toy         one video with the toy base
    python -m benchmarks.speed --what train --host diffusers    a training step
    python -m benchmarks.speed --device cuda --dtype fp16 --height 320 --width 512

All programs use the same weights (random at full size, since time does not depend on them) and run
in turn; medians are compared. On a CPU that is the CPU time of the process on all cores, because
the clock would count other programs too; on a GPU it is the wall clock.

- `lamp`: this project in the chosen host. `plain`: the image UNet alone on the same batch.
  `literal`: the official layout on the same tensors (benchmarks/speed/literal.py).
- Training: `literal` has latents and text embeddings precomputed, as lamp has;
  `literal + encoders` runs the VAE and the text encoder in each step. None uses checkpointing.
- Sampling with `--few`: `few steps` is lamp at guidance 1, as with a few-step LoRA.

Before timing, lamp and literal must agree (in training: their gradients); exit status 1 if they do
not. Prints a table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Table, finish, parser
from scripts.server.host import HostMissing, make_base_directory, use_host

from .measure import Seconds, interleaved, matrix_rate, work_of
from .models import DTYPES, SIZES, Shape, build
from .runs import (
    EQUAL,
    GUIDANCE,
    difference,
    forward_runs,
    gradient_difference,
    outside_the_unet,
    sample_runs,
    train_runs,
)

# Gradients pass through twice as many sums.
_GRADIENT_FACTOR = 50


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as base:
        if options.host == "comfy":
            try:
                use_host(make_base_directory(Path(base)))
            except HostMissing as missing:
                print(f"{missing} (or use --host diffusers)")
                return 2
        found = measure(options)
    show(found)
    return finish(found)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    command = parser("speed", __doc__)
    add = command.add_argument
    add("--what", choices=("forward", "sample", "train"), default="forward")
    add("--host", choices=("comfy", "diffusers"), default="comfy")
    add("--size", choices=tuple(SIZES), default="full")
    add("--frames", type=int, default=16)
    add("--height", type=int, help="in pixels; default 16 latents of the model")
    add("--width", type=int, help="in pixels; default the height")
    add("--dtype", choices=tuple(DTYPES), default="fp32")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--steps", type=int, default=4, help="sampling steps")
    add("--cfg", type=float, default=GUIDANCE, help="guidance of sampling")
    add("--few", type=int, default=0, help="sampling steps with a few-step LoRA")
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=1, help="of the CPU")
    options = command.parse_args(arguments)
    stride = SIZES[options.size].stride
    multiple = 2 ** (len(SIZES[options.size].config["block_out_channels"]) - 1) * stride
    options.height = options.height or 16 * stride
    options.width = options.width or options.height
    for name in ("height", "width"):
        if getattr(options, name) < multiple or getattr(options, name) % multiple:
            command.error(f"--{name} is {getattr(options, name)}: choose a multiple of {multiple}")
    for name, least in (("frames", 2), ("steps", 1), ("repeats", 1), ("threads", 1)):
        if getattr(options, name) < least:
            command.error(f"--{name} is {getattr(options, name)}: choose {least} or more")
    if options.what == "train" and options.dtype != "fp32":
        command.error("--what train needs --dtype fp32: the literal baseline has no autocast")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The result of one case, which is the line of JSON."""
    dtype, device = DTYPES[options.dtype], options.device
    subject = build(options.host, options.size, dtype, device)
    stride = SIZES[options.size].stride
    shape = Shape(options.frames, options.height // stride, options.width // stride)
    bound = EQUAL[dtype]
    if options.what == "train":
        bound, apart = _GRADIENT_FACTOR * bound, gradient_difference(subject, shape)
        runs = train_runs(subject, shape, options.size)
    elif options.what == "sample":
        runs = sample_runs(subject, shape, options.steps, options.cfg)
        apart = difference(runs)
        if options.few:
            runs["few steps"] = sample_runs(subject, shape, options.few, 1.0)["lamp"]
    else:
        runs = forward_runs(subject, shape)
        apart = difference(runs)
    found: dict[str, Any] = {"benchmark": "speed", **vars(options)}
    found |= {"pass": apart <= bound, "difference": apart}
    if not found["pass"]:
        return found
    work = {name: work_of(run, device) for name, run in runs.items()}
    taken = interleaved(runs, options.repeats, device)
    rate = matrix_rate(dtype, device)
    rows = {
        name: {
            "seconds": seconds.wall,
            "cpu_seconds": seconds.cpu,
            "peak_mb": work[name].peak / 2**20,
            "gflop": work[name].flop / 1e9,
            "share_of_matrix_rate": work[name].flop / seconds.of(device) / rate,
        }
        for name, seconds in taken.items()
    }
    found |= {"matrix_gflop_per_second": rate / 1e9, "runs": rows, **_ratios(taken, device)}
    if options.what == "sample":
        found["outside_the_unet"] = outside_the_unet(subject, shape, options.steps, 3)
    return found


def _ratios(taken: dict[str, Seconds], device: str) -> dict[str, float]:
    """lamp / plain, and each other program / lamp."""
    ours = taken["lamp"].of(device)
    ratios = {}
    for name, seconds in taken.items():
        if name == "plain":
            ratios["lamp_tax"] = ours / seconds.of(device)
        elif name != "lamp":
            ratios[f"{name} / lamp"] = seconds.of(device) / ours
    return ratios


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    if not found["pass"]:
        print(f"FAIL: lamp and the literal baseline differ by {found['difference']:.1e}.")
        return
    print(
        f"{found['what']} in {found['host']}, {found['size']} size, {found['frames']} x "
        f"{found['height']} x {found['width']}, {found['dtype']} on {found['device']}; equal to "
        f"{found['difference']:.0e}; a matrix product runs at "
        f"{found['matrix_gflop_per_second']:.0f} GFLOP/s"
    )
    table = Table({"": 20}, ("seconds", "CPU s", "peak MB", "GFLOP", "of rate"), places=3)
    for name, row in found["runs"].items():
        table.row(name, *row.values())
    for name in ("lamp_tax", "literal / lamp", "literal + encoders / lamp", "few steps / lamp"):
        if name in found:
            print(f"{name}: {found[name]:.3f}")
    if "outside_the_unet" in found:
        print(f"outside the UNet: {found['outside_the_unet']:.2%}")


if __name__ == "__main__":
    sys.exit(main())
