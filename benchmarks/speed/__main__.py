"""How fast is it? Ours beside the plain image UNet and the official layout, written out plainly.

    python -m benchmarks.speed                                  one guided call of a full-size UNet
    python -m benchmarks.speed --what sample --size toy         a video, with the toy base
    python -m benchmarks.speed --what train --host diffusers    a training step
    python -m benchmarks.speed --device cuda --dtype fp16 --height 320 --width 512

All run on the same weights (random ones at full size: no download, and time does not depend on
them), in turn, and medians are compared. On a CPU that is the time of the process on all its
cores, since the clock also tells of other programs; on a GPU it is the clock.

- `lamp`: this project in the host asked for. `plain`: the image UNet alone on the same batch.
  `literal`: benchmarks.speed.literal, the official layout on the same tensors.
- Of training: `literal` has its latents and text at hand as ours has; `literal + encoders` runs
  the VAE and the text encoder in each step. None of them recomputes activations.
- Of sampling, with `--few`: `few steps` is ours at guidance 1, as a few-step LoRA makes a video.

Before anything is timed, ours and the literal baseline must give equal numbers (of training: equal
gradients): exit status 1 if they do not. Prints a table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from scripts.server.host import HostMissing, make_base_directory, use_host

from .cases import EQUAL, Shape, difference, forward_runs
from .models import DTYPES, SIZES, build
from .sample import GUIDANCE, outside_the_unet, sample_runs
from .timing import Seconds, Work, interleaved, matrix_rate, work_of
from .train import gradient_difference, train_runs

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
    print(json.dumps(found))
    return 0 if found["pass"] else 1


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--what", choices=("forward", "sample", "train"), default="forward")
    parser.add_argument("--host", choices=("comfy", "diffusers"), default="comfy")
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--height", type=int, help="pixels; by default 16 latents of the model")
    parser.add_argument("--width", type=int, help="pixels; by default as the height")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=4, help="of sampling")
    parser.add_argument("--cfg", type=float, default=GUIDANCE, help="of sampling")
    parser.add_argument("--few", type=int, default=0, help="steps of a few-step LoRA, of sampling")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args(arguments)
    stride = SIZES[options.size].stride
    levels = 2 ** (len(SIZES[options.size].config["block_out_channels"]) - 1) * stride
    options.height = options.height or 16 * stride
    options.width = options.width or options.height
    for name in ("height", "width"):
        if getattr(options, name) < levels or getattr(options, name) % levels:
            parser.error(f"--{name} is {getattr(options, name)}: choose a multiple of {levels}")
    for name, least in (("frames", 2), ("steps", 1), ("repeats", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}: choose {least} or more")
    if options.what == "train" and options.dtype != "fp32":
        parser.error("--what train is measured in fp32: the literal baseline has no autocast")
    return options


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one case, as it stands in the line of JSON."""
    dtype, device = DTYPES[options.dtype], options.device
    subject = build(options.host, options.size, dtype, device)
    stride = SIZES[options.size].stride
    shape = Shape(options.frames, options.height // stride, options.width // stride)
    bound, apart = EQUAL[dtype], 0.0
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
    found |= {"matrix_gflop_per_second": rate / 1e9, "runs": _rows(work, taken, rate, device)}
    found |= _ratios(taken, device)
    if options.what == "sample":
        found["outside_the_unet"] = outside_the_unet(subject, shape, options.steps, 3)
    return found


def _rows(
    work: dict[str, Work], taken: dict[str, Seconds], rate: float, device: str
) -> dict[str, dict[str, float]]:
    return {
        name: {
            "seconds": seconds.wall,
            "cpu_seconds": seconds.cpu,
            "peak_mb": work[name].peak / 2**20,
            "gflop": work[name].flop / 1e9,
            "share_of_matrix_rate": work[name].flop / seconds.of(device) / rate,
        }
        for name, seconds in taken.items()
    }


def _ratios(taken: dict[str, Seconds], device: str) -> dict[str, float]:
    """The figures that count: ours over the plain UNet, and the literal baseline over ours."""
    ours = taken["lamp"].of(device)
    ratios = {}
    for name, seconds in taken.items():
        if name == "plain":
            ratios["lamp_tax"] = ours / seconds.of(device)
        elif name != "lamp":
            ratios[f"{name} / lamp"] = seconds.of(device) / ours
    return ratios


def show(found: dict[str, Any]) -> None:
    """The table for people."""
    if not found["pass"]:
        print(f"FAIL: ours and the literal baseline differ by {found['difference']:.1e}.")
        return
    print(
        f"{found['what']} in {found['host']}, {found['size']} size, {found['frames']} x "
        f"{found['height']} x {found['width']}, {found['dtype']} on {found['device']}; equal to "
        f"{found['difference']:.0e}; a matrix product runs at "
        f"{found['matrix_gflop_per_second']:.0f} GFLOP/s"
    )
    print(f"{'':20}{'seconds':>10}{'CPU s':>10}{'peak MB':>10}{'GFLOP':>10}{'of rate':>9}")
    for name, row in found["runs"].items():
        print(
            f"{name:20}{row['seconds']:10.3f}{row['cpu_seconds']:10.3f}{row['peak_mb']:10.1f}"
            f"{row['gflop']:10.1f}{row['share_of_matrix_rate']:9.1%}"
        )
    for name in ("lamp_tax", "literal / lamp", "literal + encoders / lamp", "few steps / lamp"):
        if name in found:
            print(f"{name}: {found[name]:.3f}")
    if "outside_the_unet" in found:
        print(f"outside of the UNet: {found['outside_the_unet']:.2%}")


if __name__ == "__main__":
    sys.exit(main())
