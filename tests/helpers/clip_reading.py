"""Read a clip directly, without the windows and captions of a training set."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lamp.clips.decoding.choose import Tally, source_frames
from lamp.clips.decoding.reader import Readable, reading
from lamp.clips.images import Fit, fit_images
from lamp.clips.listing import find_clips
from lamp.clips.video import ClipInfo


def list_clips(folder: str | Path) -> list[Path]:
    """The clips in `folder`, in natural order."""
    return find_clips(folder).clips


def probe(clip: Readable, start: float = 0.0, end: float | None = None) -> ClipInfo:
    """Size, rate and number of frames from `start` to `end` seconds, by decoding them."""
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
    path: Path,
    indices: Sequence[int],
    width: int | None = None,
    height: int | None = None,
    fit: Fit = "crop",
) -> Tensor:
    """The frames numbered `indices` (from 0, any order): `f h w 3` uint8."""
    found = {}
    with contextlib.closing(source_frames(path)) as frames:
        for number, frame in enumerate(frames):
            if number in indices:
                with reading(path):
                    picture = frame.load()
                if width is not None and height is not None:
                    picture = fit_images(picture[None], width, height, fit)[0]
                found[number] = picture
            if number == max(indices):
                break
    return torch.stack([found[index] for index in indices])
