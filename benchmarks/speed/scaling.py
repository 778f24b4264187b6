"""Time and memory of one UNet call with a motion, over frames, size and batch.

    python -m benchmarks.speed.scaling --save-plot docs/images/scaling.png

`whole` evaluates all frames at once; `windows` evaluates 16 at a time, each time with frame 1 (LAMP
Anchored Windows), so that memory does not grow with the length. Unguided, in diffusers; times on a
CPU are CPU time. Prints a table, and last one line of JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Table, finish, parser, save_plot
from lamp.method.layout import FrameLayout
from lamp.method.windows import Windows, predict_in_windows

from .measure import interleaved, work_of
from .models import DTYPES, SIZES, Shape, Subject, build, inputs

FRAMES = (8, 16, 32, 64)
SIDES = (8, 16, 24, 32)  # of the latents
BATCHES = (1, 2, 4)
WINDOWS = Windows(16, 4)
_COLOURS = {"whole": (24, 84, 168), "windows": (214, 96, 24)}


def call(subject: Subject, shape: Shape, windows: Windows | None) -> Callable[[], Tensor]:
    """One call for videos of this shape."""
    x, text = inputs(subject, shape, shape.videos)
    timesteps = torch.full((shape.videos,), 500, device=subject.device)
    seen = shape.frames if windows is None else min(shape.frames, windows.length)

    def predict(rows: Tensor, shown: Tensor) -> Tensor:
        return subject.host.predict(shown, timesteps, text)

    @torch.inference_mode()
    def run() -> Tensor:
        with subject.motion.attached(subject.host.unet, FrameLayout(seen, shape.videos)):
            return predict_in_windows(predict, x, windows, shape.frames)

    return run


def cases() -> list[tuple[str, str, Shape]]:
    """What varies, `whole` or `windows`, and the shape of the video."""
    return [
        *(("frames", "whole", Shape(frames, 16, 16)) for frames in FRAMES),
        *(("frames", "windows", Shape(frames, 16, 16)) for frames in FRAMES),
        *(("size", "whole", Shape(16, side, side)) for side in SIDES),
        *(("batch", "whole", Shape(16, 16, 16, videos)) for videos in BATCHES),
    ]


def main(arguments: list[str] | None = None) -> int:
    command = parser("speed.scaling", __doc__)
    command.add_argument("--size", choices=tuple(SIZES), default="toy")
    command.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--save-plot", type=Path)
    options = command.parse_args(arguments)
    torch.set_num_threads(options.threads)
    subject = build("diffusers", options.size, DTYPES[options.dtype], options.device)
    table = Table({"varies": 7, "how": 8, "videos x frames x latents": 26}, ("seconds", "peak MB"))
    rows: list[dict[str, Any]] = []
    for vary, how, shape in cases():
        run = call(subject, shape, WINDOWS if how == "windows" else None)
        peak = work_of(run, options.device).peak / 2**20
        taken = interleaved({how: run}, options.repeats, options.device)[how].of(options.device)
        rows.append({"vary": vary, "how": how, **vars(shape), "seconds": taken, "peak_mb": peak})
        size = f"{shape.videos} x {shape.frames} x {shape.height} x {shape.width}"
        table.row(vary, how, size, taken, peak)
    if options.save_plot:
        shown = [row for row in rows if row["vary"] == "frames"]
        panels = {
            f"{title}, over frames": [
                (how, [(row["frames"], row[what]) for row in shown if row["how"] == how])
                for how in _COLOURS
            ]
            for what, title in (("seconds", "seconds per call"), ("peak_mb", "peak MB"))
        }
        save_plot(options.save_plot, panels, _COLOURS)
    found = {"benchmark": "speed_scaling", "pass": True, "device": options.device, "rows": rows}
    return finish(found)


if __name__ == "__main__":
    sys.exit(main())
