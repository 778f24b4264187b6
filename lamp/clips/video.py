"""Reading training clips, one frame at a time: video files, animated pictures, image folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ClipError
from .decoding.choose import Tally, source_frames
from .decoding.reader import Readable, SourceFrame, reading
from .images import Fit, fit_images

_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class ClipInfo:
    """What is known of one clip: the source's size in pixels as displayed, frames and rate.

    ``caption_source`` tells where the caption comes from: ``file``, ``prompt``, ``folder`` or
    ``given``; ``fps`` is None where the source has no clock (folders of images).
    """

    name: str
    path: Path | None
    frames: int
    fps: float | None
    width: int
    height: int
    caption: str = ""
    caption_source: str = ""


def probe(clip: Readable | str, start: float = 0.0, end: float | None = None) -> ClipInfo:
    """Size, rate and number of frames (from `start` to `end` seconds), by decoding them all:
    headers are wrong too often.

    Raises ClipError if the clip cannot be read.
    """
    clip = Path(clip) if isinstance(clip, str) else clip
    tally, size = Tally(), (0, 0)
    with contextlib.closing(source_frames(clip, start, end)) as frames:
        for frame in tally.watch(frames):
            if tally.count == 1:
                with reading(clip):
                    height, width, _ = frame.load().shape
                    size = width, height
    path = clip if isinstance(clip, Path) else None
    return ClipInfo(clip.name, path, tally.count, tally.rate, *size)


def read_frames(
    path: str | Path,
    indices: Sequence[int],
    width: int | None = None,
    height: int | None = None,
    fit: Fit = "crop",
) -> Tensor:
    """The frames numbered ``indices`` (from 0, any order): ``f h w 3`` uint8.

    Decoding stops after the last one asked for; only these become pixels. With ``width`` and
    ``height`` each frame is fitted at once (see ``fit_images``), so that memory holds no more
    than the result. Raises ClipError if the clip cannot be read or has no such frame.
    """
    path = Path(path)
    wanted, found = set(indices), {}
    if not wanted or min(wanted) < 0:
        raise ClipError(f"Ask for frames of '{path.name}' by numbers from 0, not {list(indices)}.")
    count = 0
    with contextlib.closing(source_frames(path)) as frames:
        for count, frame in enumerate(frames, start=1):
            if count - 1 in wanted:
                found[count - 1] = fitted(frame, path, width, height, fit)
            if count > max(wanted):
                break
    if missing := sorted(wanted - set(found)):
        raise ClipError(f"'{path.name}' has {count} frames: there is no frame {missing[0]}.")
    if len({image.shape for image in found.values()}) > 1:
        raise ClipError(f"The images in '{path.name}' differ in size. Give a width and height.")
    return torch.stack([found[index] for index in indices])


def fitted(
    frame: SourceFrame,
    clip: Readable | str,
    width: int | None,
    height: int | None,
    fit: Fit,
) -> Tensor:
    """One frame's picture ``h w 3`` uint8, fitted where a size is given; `clip` names it."""
    with reading(clip):
        image = frame.load()
    if width is None or height is None:
        return image
    return fit_images(image[None], width, height, fit)[0]


def resample(frames: Iterator[SourceFrame], fps: float) -> Iterator[SourceFrame]:
    """At each time 0, 1/fps, 2/fps, ... of the clip the frame that is nearest, of two the first.

    A clip lasts until one more interval after its last frame, or for as long as that one is held
    by what the file says. Frames without a time pass as they are.
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
