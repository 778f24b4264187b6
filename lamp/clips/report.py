"""Reports on a set of training clips: as text and as a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plain import plain
from .clip_set import Clip, ClipSet
from .images import Fit
from .settings import share_kept

FLOW = (
    "Motion is by how many pixels the fastest tenth of the picture shifts between training frames. "
    "Change is the mean change of the colours, in percent of full scale."
)
NO_FLOW = (
    "Change is the mean change of the colours from one training frame to the next, in percent of "
    "full scale. Install OpenCV (opencv-python-headless) to measure motion in pixels too."
)
THUMB_HEIGHT = 96
GAP = 4
MAX_ROWS = 32
MOST_COPIES = 3


def describe_clips(clips: ClipSet) -> str:
    """A headline, a line per clip, a legend, and the warnings. Names and captions come from outside
    and cannot start a line of their own."""
    chosen = clips.settings
    head = (
        f"{_number(len(clips), 'clip')}, {_number(len(clips.windows()), 'window')} of "
        f"{chosen.frames} frames, stride {chosen.stride}, "
        + " and ".join(f"{width} x {height}" for width, height in clips.sizes)
    )
    if chosen.fps and any(info.fps for info in clips.infos):  # others are not resampled
        head += f", {chosen.fps:g} fps"
    head += f", each with {_number(chosen.copies, 'distorted copy')}" if chosen.copies else ""
    lines = [_line(clips, number) for number in range(len(clips))]
    measured = all(clip.movement.flow is not None for clip in clips.sources)
    warnings = [f"Warning: {text}" for text in clips.warnings]
    text = [head, *lines, FLOW if measured else NO_FLOW, *warnings]
    return "\n".join(plain(line) for line in text)


def contact_sheet(clips: ClipSet, columns: int = 6) -> Tensor:
    """IMAGE ``1 h w 3`` in 0..1: a row of evenly spaced frames for each of the first 32 clips, and
    for the first distorted copies of the first clip."""
    rows = [_row(clips, number, columns) for number in range(min(len(clips), MAX_ROWS))]
    shown = min(clips.settings.copies, MOST_COPIES)
    rows += [_row(clips, 0, columns, copy) for copy in range(1, shown + 1)]
    width = max(row.shape[1] for row in rows)
    rows = [F.pad(row, (0, 0, 0, width - row.shape[1], 0, GAP)) for row in rows]
    return F.pad(torch.cat(rows), (0, 0, GAP, 0, GAP, 0))[None]


def _row(clips: ClipSet, number: int, columns: int, copy: int = 0) -> Tensor:
    """Frames from first to last, side by side: ``h w 3`` in 0..1."""
    length = clips.length(number)
    chosen = torch.linspace(0, length - 1, min(columns, length)).round().long().tolist()
    width, height = clips.size(number)
    size = THUMB_HEIGHT, max(round(width * THUMB_HEIGHT / height), 1)
    frames = clips.frames(number, chosen, copy).movedim(-1, 1).float() / 255
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
