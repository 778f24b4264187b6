"""What a set of training clips looks like: as text and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plain import plain
from .images import Fit
from .settings import share_kept

if TYPE_CHECKING:
    from .clip_set import Clip, ClipSet

FLOW = (
    "Motion is by how many pixels the fastest tenth of the picture moves from one learned frame to "
    "the next, change by how much of full scale the colours do."
)
NO_FLOW = (
    "Change is by how much of full scale the colours change from one learned frame to the next. "
    "With OpenCV installed (opencv-python-headless) the motion is measured in pixels, too."
)
THUMB_HEIGHT = 96
GAP = 4
MOST_ROWS = 32


def report(clips: ClipSet) -> str:
    """A headline, a line for each clip, how motion is told, and the warnings: names and captions
    come from outside, and stay on their line."""
    chosen = clips.settings
    sizes = dict.fromkeys(clips.size(number) for number in range(len(clips)))
    head = (
        f"{_number(len(clips), 'clip')}, {_number(len(clips.windows()), 'window')} of "
        f"{chosen.frames} frames, stride {chosen.stride}, "
        + " and ".join(f"{width} x {height}" for width, height in sizes)
    )
    head += f", {chosen.fps:g} fps" if chosen.fps else ""
    lines = [_line(clips, number) for number in range(len(clips))]
    measured = all(clip.movement.flow is not None for clip in clips.sources)
    warnings = [f"Warning: {text}" for text in clips.warnings]
    told = [head, *lines, FLOW if measured else NO_FLOW, *warnings]
    return "\n".join(plain(line) for line in told)


def contact_sheet(clips: ClipSet, columns: int = 6) -> Tensor:
    """IMAGE ``1 h w 3`` in 0..1: a row for each of the first 32 clips, frames evenly spread."""
    rows = [_row(clips, number, columns) for number in range(min(len(clips), MOST_ROWS))]
    width = max(row.shape[1] for row in rows)
    rows = [F.pad(row, (0, 0, 0, width - row.shape[1], 0, GAP)) for row in rows]
    return F.pad(torch.cat(rows), (0, 0, GAP, 0, GAP, 0))[None]


def _row(clips: ClipSet, number: int, columns: int) -> Tensor:
    """Frames from the first to the last side by side: ``h w 3`` in 0..1."""
    length = clips.length(number)
    chosen = torch.linspace(0, length - 1, min(columns, length)).round().long().tolist()
    width, height = clips.size(number)
    size = THUMB_HEIGHT, max(round(width * THUMB_HEIGHT / height), 1)
    frames = clips.frames(number, chosen).movedim(-1, 1).float() / 255
    thumbs = F.interpolate(frames, size, mode="bilinear", antialias=True).movedim(1, -1)
    return F.pad(thumbs, (0, 0, 0, GAP)).transpose(0, 1).flatten(1, 2)


def _line(clips: ClipSet, number: int) -> str:
    clip, info = clips.sources[number], clips.infos[number]
    flow = clip.movement.flow
    parts = [
        f"{number + 1}. {info.name}: {_size(clip, clips.settings.fit)}",
        *([f"{info.fps:.4g} fps"] if info.fps else []),
        _number(clip.length, "frame") + (f" of {info.frames}" if clip.length < info.frames else ""),
        _number(clips.starts(number), "window"),
        *([f"motion {flow:.1f} px"] if flow is not None else []),
        f"change {clip.movement.change:.1f} %",
        f"'{info.caption}' ({info.caption_source})",
    ]
    return ", ".join(parts)


def _size(clip: Clip, fit: Fit) -> str:
    found = clip.info.width, clip.info.height
    text = f"{found[0]} x {found[1]}"
    if found == clip.size:
        return text
    same_shape = share_kept(found, clip.size) > 0.995
    how = "" if same_shape else {"crop": "cropped ", "pad": "padded ", "stretch": "stretched "}[fit]
    return f"{text} {how}to {clip.size[0]} x {clip.size[1]}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
