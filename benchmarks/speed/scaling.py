"""Time and memory of one call of the UNet with a motion, over frames, size and batch.

    python -m benchmarks.speed.scaling --save-plot docs/images/scaling.png

`whole` shows the model all frames at once; `windows` shows it 16 at a time, each with frame 1
(LAMP Anchored Windows), which keeps the memory the same however long the video is. Unguided, in
diffusers; on a CPU the times are those of the process. Prints a line for each case, and last one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamp.method.layout import FrameLayout
from lamp.method.windows import Windows, predict_in_windows

from .cases import Shape, inputs
from .models import DTYPES, SIZES, Subject, build
from .timing import interleaved, work_of

Row = dict[str, Any]

FRAMES = (8, 16, 32, 64)
SIDES = (8, 16, 24, 32)  # of the latents
BATCHES = (1, 2, 4)
WINDOWS = Windows(16, 4)
_COLOURS = {"whole": (24, 84, 168), "windows": (214, 96, 24)}
_AXIS = (96, 96, 96)


def call(subject: Subject, shape: Shape, windows: Windows | None) -> Callable[[], Tensor]:
    """One call for videos of this shape."""
    x, text = inputs(subject, shape, shape.videos)
    timesteps = torch.full((shape.videos,), 500, device=subject.device)
    seen = shape.frames if windows is None else min(shape.frames, windows.length)

    @torch.inference_mode()
    def run() -> Tensor:
        with subject.motion.attached(subject.host.unet, FrameLayout(seen, shape.videos)):
            return predict_in_windows(
                lambda rows: subject.host.predict(x[rows], timesteps, text),
                x, windows, shape.frames,
            )  # fmt: skip

    return run


def measure(subject: Subject, vary: str, name: str, shape: Shape, repeats: int) -> Row:
    """Time and memory of a case."""
    run = call(subject, shape, WINDOWS if name == "windows" else None)
    peak = work_of(run, subject.device).peak
    taken = interleaved({name: run}, repeats, subject.device)[name]
    row = {"vary": vary, "how": name, **vars(shape)}
    row |= {"seconds": taken.of(subject.device), "peak_mb": peak / 2**20}
    print(
        f"{vary:7} {name:8} {shape.videos} x {shape.frames:2} frames of {shape.height:2} x "
        f"{shape.width:2} latents: {row['seconds']:8.3f} s {row['peak_mb']:9.1f} MB",
        flush=True,
    )
    return row


def cases() -> list[tuple[str, str, Shape]]:
    """What varies, how the video is shown, and its shape."""
    return [
        *(("frames", "whole", Shape(frames, 16, 16)) for frames in FRAMES),
        *(("frames", "windows", Shape(frames, 16, 16)) for frames in FRAMES),
        *(("size", "whole", Shape(16, side, side)) for side in SIDES),
        *(("batch", "whole", Shape(16, 16, 16, videos)) for videos in BATCHES),
    ]


def save_plot(path: Path, rows: list[Row], size: tuple[int, int] = (720, 320)) -> None:
    """Time and memory over frames, side by side, from zero."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    shown = [row for row in rows if row["vary"] == "frames"]
    for panel, (what, title) in enumerate((("seconds", "seconds a call"), ("peak_mb", "peak MB"))):
        left, right = 56 + panel * size[0] // 2, (panel + 1) * size[0] // 2 - 16
        top, bottom = 32, size[1] - 32
        most, last = max(row[what] for row in shown), max(row["frames"] for row in shown)
        draw.rectangle((left, top, right, bottom), outline=_AXIS)
        draw.text((left, 12), f"{title}, over frames", fill=_AXIS)
        draw.text((left - 50, top), f"{most:.3g}", fill=_AXIS)
        draw.text((left - 14, bottom - 12), "0", fill=_AXIS)
        for how, colour in _COLOURS.items():
            line = [
                (
                    left + (right - left) * row["frames"] / last,
                    bottom - (bottom - top) * row[what] / most,
                )
                for row in shown
                if row["how"] == how
            ]
            draw.line(line, fill=colour, width=2)
            for x, y in line:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
            draw.text((left + 12, top + 8 + 14 * list(_COLOURS).index(how)), how, fill=colour)
        for frames in sorted({row["frames"] for row in shown}):
            x = left + (right - left) * frames / last
            draw.text((x - 6, bottom + 8), str(frames), fill=_AXIS)
    picture.save(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.speed.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=tuple(SIZES), default="toy")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-plot", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    subject = build("diffusers", options.size, DTYPES[options.dtype], options.device)
    rows = [measure(subject, *case, options.repeats) for case in cases()]
    if options.save_plot:
        save_plot(options.save_plot, rows)
    print(json.dumps({"benchmark": "speed_scaling", "device": options.device, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
