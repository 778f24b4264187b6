"""Frames of a training clip: its facts, and resampling to another rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .decoding.reader import SourceFrame

_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class ClipInfo:
    """Facts about one clip: displayed size in pixels, frames and rate.

    ``caption_source`` is ``file``, ``prompt``, ``folder`` or ``given``; ``fps`` is None where the
    source has no timestamps (folders of images).
    """

    name: str
    path: Path | None
    frames: int
    fps: float | None
    width: int
    height: int
    caption: str = ""
    caption_source: str = ""


def resample(frames: Iterator[SourceFrame], fps: float) -> Iterator[SourceFrame]:
    """The nearest frame (of two, the first) at each time 0, 1/fps, 2/fps, ...

    A clip lasts one interval beyond its last frame, or for that frame's stated duration if that is
    longer. Frames without a time pass unchanged.
    """
    previous: SourceFrame | None = None
    start = now = gap = 0.0
    number = 0
    for frame in frames:
        if frame.time is None:
            yield frame
            continue
        if previous is None:
            start = now = frame.time
        gap = frame.time - now
        while previous and number / fps <= now + gap / 2 - start + _ROUNDING:
            yield previous
            number += 1
        previous, now = frame, frame.time
    if previous:
        last = now - start + max(gap, previous.held or 0.0)
        while not number or number / fps < last - _ROUNDING:
            yield previous
            number += 1
