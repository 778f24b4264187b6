"""Numbered clips in every supported container, and the frames that training should see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.samples.clip_files import numbers_of, write_numbered
from lamp.clips.load import load_clips

SIZE = {"width": 64, "height": 48}
CONTAINERS = {
    "a.mp4": {}, "a.mov": {}, "a.mkv": {}, "a.flv": {"codec": "libx264"}, "a.ts": {}, "a.3gp": {},
    "a.m2ts": {}, "a.wmv": {"codec": "wmv2"}, "a.avi": {}, "b.avi": {"codec": "mpeg4"},
    "a.webm": {"codec": "libvpx-vp9"}, "b.webm": {"codec": "libvpx"}, "a.gif":
    {"codec": "gif", "pixels": "rgb8"}, "a.ogv": {"codec": "libvpx"}, "a.qt": {"format": "mov"},
    "b.mkv": {"codec": "libx265"}, "a.mpg": {"codec": "mpeg2video", "rate": 25},
}  # fmt: skip


def write_kind(path: Path, count: int, **changes: object) -> Path:
    how = {**CONTAINERS[path.name], **changes}
    kind = how.pop("format", None)
    if kind:
        made = write_numbered(path.with_suffix(f".{kind}"), count, **how)
        return made.rename(path)
    return write_numbered(path, count, **how)


def all_numbers(path: Path, fps: float | None = None) -> list[int]:
    """The numbers of all frames that are learned from."""
    clips = load_clips([path], "", 2, fps=fps, **SIZE)
    return numbers_of(torch.cat(list(clips.chunks(0))))


def sampled(times: Sequence[float], fps: float, hold: float | None = None) -> list[int]:
    """The plain formula: at each time 0, 1/fps, ... the frame that is nearest, of two the first."""
    shown = np.array(times) - times[0]
    end = shown[-1] + max(hold or 0.0, shown[-1] - shown[-2])
    targets = np.arange(0, end - 1e-6, 1 / fps)
    return np.abs(targets[:, None] - shown).round(6).argmin(1).tolist()
