"""Speed, memory and accuracy of sampling and training on this machine's GPU, in one command.

    python -m benchmarks.gpu                     about eight minutes on CUDA, ROCm, XPU or MPS
    python -m benchmarks.gpu --minutes 3 --out results
    python -m benchmarks.gpu --tiny --device cpu   the same code with a small model, in seconds

It needs PyTorch, NumPy and this repository, and no network. ComfyUI, diffusers, einops (for the
literal baseline) and bitsandbytes are optional: what needs one that is missing is skipped, with the
reason. So is what does not fit in the time or the memory. The model is the UNet of Stable Diffusion
1.x with random weights, on which neither time nor memory depends; 16 frames of 320 x 512 pixels.

Without a GPU it runs the tiny form. Writes gpu.json and gpu.md (a section for docs/performance.md)
to the folder `--out`, and prints one line of JSON last. Exit status 1 if a comparison fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import finish, parser

from . import sampling, training
from .comfy import comfyui
from .device import Device, find_device
from .report import markdown
from .session import FULL, TINY, Session

# In the order of interest, as the last ones are skipped when time runs out.
PARTS = {
    "accuracy": sampling.accuracy,
    "sampling": sampling.speed,
    "training": training.steps,
    "comfyui": comfyui,
    "toy": training.toy_motion,
    "compile": sampling.compiled,
}
# Of a call in half precision against fp32, as a multiple of the image model's own error.
_WORST_ERROR = 3.0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    device = Device(options.device)
    torch.manual_seed(0)
    begin = time.monotonic()
    session = Session(device, TINY if options.tiny else FULL, begin + 60 * options.minutes)
    for name in options.parts:
        try:
            PARTS[name](session)
        except Exception as error:  # a benchmark on unknown hardware goes on
            session.skip(name, f"{type(error).__name__}: {error}")
        device.free()
    shape = session.sizes.shape
    found = {
        "benchmark": "gpu",
        "pass": accurate(session.rows),
        "machine": device.describe(),
        "size": f"{'Toy' if options.tiny else 'SD 1.x'} UNet with random weights, "
        f"{shape.frames} frames of {shape.height} x {shape.width} latents",
        "seconds": time.monotonic() - begin,
        "rows": session.rows,
        "skipped": session.skipped,
    }
    write(found, options.out)
    return finish(found)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    command = parser("gpu", __doc__)
    add = command.add_argument
    add("--minutes", type=float, default=8.0, help="time to stay within; default 8")
    add("--out", type=Path, default=Path("build/gpu"), help="folder; default build/gpu")
    add("--device", choices=("cuda", "xpu", "mps", "cpu"), default=find_device())
    add("--tiny", action="store_true", help="a small model; always on a CPU")
    add("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="default all")
    options = command.parse_args(arguments)
    options.tiny = options.tiny or options.device == "cpu"
    if not 0 < options.minutes <= 600:
        command.error(f"--minutes is {options.minutes}: choose more than 0, up to 600")
    return options


def accurate(rows: list[dict[str, Any]]) -> bool:
    """Whether half precision costs the motion no more digits than the image model, and the fused
    kernels agree with PyTorch's operations."""
    return all(
        row["lamp_error"] <= _WORST_ERROR * row["image_model_error"]
        for row in rows
        if row["part"] == "accuracy"
    ) and all(
        row["call_error"] <= {"fp32": 1e-3, "fp16": 1e-2, "bf16": 8e-2}[row["case"]]
        for row in rows
        if row["part"] == "fused kernels" and row["used"]
    )


def write(found: dict[str, Any], folder: Path) -> None:
    """The files gpu.json and gpu.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (folder / "gpu.md").write_text(markdown(found), "utf-8")
    print(f"wrote {folder / 'gpu.json'} and {folder / 'gpu.md'}")


if __name__ == "__main__":
    sys.exit(main())
