"""What a set of training clips looks like: as text and as a picture."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .clips import ClipSet
    from .video import ClipInfo

THUMB_HEIGHT = 96
GAP = 4
MOST_ROWS = 32


def report(clips: ClipSet) -> str:
    """Plain text: a headline, a line for each clip, and the warnings."""
    chosen = clips.settings
    count = len(clips.windows())
    head = (
        f"{_number(len(clips), 'clip')}, {_number(count, 'window')} of {chosen.frames} frames, "
        f"stride {chosen.stride}, {chosen.width} x {chosen.height}"
    )
    head += f", {chosen.fps:g} fps" if chosen.fps else ""
    lines = [_line(clips, number) for number in range(len(clips))]
    still = [
        f"'{info.name}' does not move at all."
        for number, info in enumerate(clips.infos)
        if motion_amount(clips, number) == 0
    ]
    warnings = [f"Warning: {text}" for text in [*clips.warnings, *still]]
    return "\n".join([head, *lines, *warnings])


def motion_amount(clips: ClipSet, number: int) -> float:
    """Mean absolute change from one learned frame to the next, in percent of full scale."""
    seen: deque[Tensor] = deque(maxlen=clips.settings.stride)
    changes = []
    for chunk in clips.chunks(number):
        for frame in chunk.short():
            if len(seen) == clips.settings.stride:
                changes.append((frame - seen[0]).abs().float().mean().item())
            seen.append(frame)
    return 100 * sum(changes) / (255 * len(changes)) if changes else 0.0


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
    info = clips.infos[number]
    parts = [
        f"{number + 1}. {info.name}: {info.width} x {info.height}",
        *([f"{info.fps:.4g} fps"] if info.fps else []),
        _frames(info, clips.length(number)),
        _number(clips.starts(number), "window"),
        f"motion {motion_amount(clips, number):.1f} %",
        f"'{info.caption}' ({info.caption_source})",
    ]
    return ", ".join(parts)


def _frames(info: ClipInfo, kept: int) -> str:
    return _number(kept, "frame") + ("" if kept == info.frames else f" of {info.frames}")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
