"""What a set of training clips looks like: as text and as a picture."""

from __future__ import annotations

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
        for info, frames in zip(clips.infos, clips.clips, strict=True)
        if motion_amount(frames, chosen.stride) == 0
    ]
    warnings = [f"Warning: {text}" for text in [*clips.warnings, *still]]
    return "\n".join([head, *lines, *warnings])


def motion_amount(frames: Tensor, stride: int = 1) -> float:
    """Mean absolute change of ``f h w c`` uint8 from frame to frame, in percent of full scale."""
    pairs = zip(frames[:-stride], frames[stride:], strict=True)
    changes = [(after.short() - before).abs().float().mean().item() for before, after in pairs]
    return 100 * sum(changes) / (255 * len(changes)) if changes else 0.0


def contact_sheet(clips: ClipSet, columns: int = 6) -> Tensor:
    """IMAGE ``1 h w 3`` in 0..1: a row for each of the first 32 clips, frames evenly spread."""
    rows = [_row(frames, columns) for frames in clips.clips[:MOST_ROWS]]
    width = max(row.shape[1] for row in rows)
    rows = [F.pad(row, (0, 0, 0, width - row.shape[1], 0, GAP)) for row in rows]
    return F.pad(torch.cat(rows), (0, 0, GAP, 0, GAP, 0))[None]


def _row(frames: Tensor, columns: int) -> Tensor:
    """Frames from the first to the last side by side: ``h w 3`` in 0..1."""
    numbers = torch.linspace(0, frames.shape[0] - 1, min(columns, frames.shape[0])).round().long()
    height, width = frames.shape[1:3]
    size = THUMB_HEIGHT, max(round(width * THUMB_HEIGHT / height), 1)
    chosen = frames[numbers].movedim(-1, 1).float() / 255
    thumbs = F.interpolate(chosen, size, mode="bilinear", antialias=True).movedim(1, -1)
    return F.pad(thumbs, (0, 0, 0, GAP)).transpose(0, 1).flatten(1, 2)


def _line(clips: ClipSet, number: int) -> str:
    info, frames = clips.infos[number], clips.clips[number]
    parts = [
        f"{number + 1}. {info.name}: {info.width} x {info.height}",
        *([f"{info.fps:.4g} fps"] if info.fps else []),
        _frames(info, frames),
        _number(clips.starts(number), "window"),
        f"motion {motion_amount(frames, clips.settings.stride):.1f} %",
        f"'{info.caption}' ({info.caption_source})",
    ]
    return ", ".join(parts)


def _frames(info: ClipInfo, frames: Tensor) -> str:
    kept = frames.shape[0]
    return _number(kept, "frame") + ("" if kept == info.frames else f" of {info.frames}")


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
