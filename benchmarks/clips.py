"""How is every clip of a folder read?

    python -m benchmarks.clips DIR --fps 10

For each clip: frames, size, rate, colours of the four corners, order of the frame numbers, and
warnings; for files that are left out, the reason. Frame numbers are read from clips that show them
as six bits: black or white blocks, lowest bit first, from the first to the seventh eighth of the
width at three eighths of the height. Prints a table, and last one line of JSON. Exit status 0 only
if every file is read or left out with a reason.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import parser
from lamp.clips.decoding.choose import source_frames
from lamp.clips.listing import find_clips
from lamp.clips.load import load_clips
from lamp.clips.video import resample
from lamp.errors import LampError
from lamp.plain import plain

MOST_FRAMES = 480
_BITS = 6
_LIT, _DARK = 190, 65


def main() -> int:
    command = parser("clips", __doc__)
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--fps", type=float, help="resample all clips to this rate first")
    args = command.parse_args()
    try:
        listing = find_clips(args.folder)
    except LampError as error:
        print(error)
        return 1
    rows = [look_at(path, args.fps) for path in listing.clips]
    print(table(rows))
    for note in listing.notes:
        print(plain(note))
    failed = sum("error" in row for row in rows)
    print(json.dumps({"clips": rows, "left_out": listing.left_out, "failed": failed}))
    return int(failed > 0)


def look_at(path: Path, fps: float | None) -> dict[str, Any]:
    """The properties of one clip, or its `error`."""
    row: dict[str, Any] = {"name": path.name}
    try:
        clips = load_clips([path], "", 2, 64, 48, fps=fps, short="loop", fit="stretch")
        numbers: list[int | None] = []
        with contextlib.closing(source_frames(path)) as source:
            for frame in resample(source, fps) if fps else source:
                picture = frame.load()
                if not numbers:
                    row["corners"] = corners(picture)
                numbers.append(number_in(picture))
                if len(numbers) == MOST_FRAMES:
                    break
    except LampError as error:
        return {**row, "error": str(error)}
    info = clips.infos[0]
    row |= {"frames": clips.sources[0].once, "of": info.frames, "width": info.width}
    row |= {"height": info.height, "fps": info.fps, "order": order(numbers)}
    return {**row, "warnings": clips.warnings, "caption": info.caption}


def corners(picture: Tensor) -> list[list[int]]:
    """Mean colours of ``h w 3`` at the top left, top right, bottom left and bottom right."""
    height, width = (max(side // 8, 1) for side in picture.shape[:2])
    top, bottom = picture[:height].float(), picture[-height:].float()
    parts = [
        half[:, side] for half in (top, bottom) for side in (slice(width), slice(-width, None))
    ]
    return [part.mean((0, 1)).round().int().tolist() for part in parts]


def number_in(picture: Tensor) -> int | None:
    """The number that a frame ``h w 3`` shows, if any."""
    height, width = picture.shape[:2]
    places = torch.tensor([int((place + 1.5) / 8 * width) for place in range(_BITS)])
    bits = picture[int(0.375 * height), places].float().mean(-1)
    if not ((bits > _LIT) | (bits < _DARK)).all():
        return None
    return int(sum(2**place for place in range(_BITS) if bits[place] > _LIT))


def order(numbers: Sequence[int | None]) -> str:
    """`0-9, 9, 12-14`: runs of rising numbers; `-` for frames without one."""
    runs: list[list[int | None]] = []
    for number in numbers:
        last = runs[-1][-1] if runs else None
        if runs and (number is None) == (last is None) and number in (None, (last or 0) + 1):
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = (f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return ", ".join("-" if text.startswith("None") else text for text in shown)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per clip, followed by its warnings or with its error."""
    lines = [
        f"{'clip':<44} {'frames':>9} {'size':>11} {'fps':>7}  corners (red green blue), frame order"
    ]
    for row in rows:
        name = plain(row["name"], 44)
        if "error" in row:
            lines.append(f"{name:<44} {plain(row['error'])}")
            continue
        frames = f"{row['frames']}" + (f"/{row['of']}" if row["of"] != row["frames"] else "")
        size, fps = f"{row['width']} x {row['height']}", f"{row['fps']:.4g}" if row["fps"] else "-"
        seen = "  ".join(" ".join(map(str, colour)) for colour in row["corners"])
        lines.append(f"{name:<44} {frames:>9} {size:>11} {fps:>7}  {seen}, {row['order']}")
        lines += [f"{'':<46}{plain(warning)}" for warning in row["warnings"]]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
