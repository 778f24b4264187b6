"""The samples of a run side by side, to choose a motion by eye: a picture and an animation.

samples.png     one row per sample: its frames from left to right, its step and scores
samples.webp    all samples at once, each with its step and scores
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..clips.images import thumbnail_uri
from ..errors import LampError
from ..files.atomic import write_advice, write_file
from .stopping import Measured

_SAMPLE = re.compile(r"sample-step(\d+)\.webp")
_MOST = 24  # samples that are shown; of more, evenly spaced ones
_FRAMES = 8  # frames in a row of the picture
_SIDE = 160  # pixels, longest side of a frame
_LABEL = 30  # pixels, two lines of text


@dataclass(frozen=True)
class Sample:
    """A sample video: its step, pictures, and the milliseconds that each is shown."""

    step: int
    frames: Sequence[Any]
    duration: int


def read_samples(folder: Path) -> list[Sample]:
    """The samples in a run's folder by step, scaled down; at most `_MOST`, first and last included.
    Damaged ones are left out."""
    from PIL import Image, ImageSequence

    found = {int(match[1]): path for path in folder.glob("*") if (match := _named(path))}
    steps = sorted(found)
    if len(steps) > _MOST:
        steps = [steps[round(i * (len(steps) - 1) / (_MOST - 1))] for i in range(_MOST)]
    samples = []
    for step in steps:
        with contextlib.suppress(OSError, ValueError), Image.open(found[step]) as image:
            frames = [_small(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
            duration = int(image.info.get("duration", 0)) or 100  # known once a frame is decoded
            samples.append(Sample(step, frames, duration))
    return samples


def sample_of(folder: Path, step: int) -> Path | None:
    """The newest sample of a run up to a step."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := _named(path))}
    newest = max((each for each in found if each <= step), default=None)
    return None if newest is None else found[newest]


def sample_thumbnail(folder: Path, step: int) -> str:
    """The middle frame of `sample_of`, as the header of a motion file holds it; empty if there is
    none."""
    import numpy as np
    import torch
    from PIL import Image

    sample = sample_of(folder, step)
    if sample is not None:
        with contextlib.suppress(OSError, ValueError), Image.open(sample) as image:
            image.seek(getattr(image, "n_frames", 1) // 2)
            pixels = np.asarray(image.convert("RGB"))
            return thumbnail_uri(torch.from_numpy(pixels.copy())[None] / 255)
    return ""


def save_comparison(
    folder: Path,
    measured: Sequence[Measured] = (),
    best: int | None = None,
    kept: Container[int] = (),
    states: Container[int] = (),
) -> list[Path]:
    """Write samples.png and samples.webp into a run's folder; returns their paths, none with fewer
    than two samples.

    Args:
        measured: the scores to show.
        best: the step to mark as best.
        kept: the steps whose motions have a file, to be marked.
        states: the steps with a training state, from which a motion can be saved, to be marked.

    Raises:
        LampError: a file cannot be written.
    """
    samples = read_samples(folder)
    if len(samples) < 2:
        return []
    scores = {each.step: each.scores for each in measured}
    labels = {}
    for step in (sample.step for sample in samples):
        known = {"best": step == best, "kept": step in kept, "state": step in states}
        marks = [name for name, on in known.items() if on]
        labels[step] = _label(step, scores.get(step, {}), marks)
    options = {"duration": samples[0].duration, "loop": 0, "quality": 85}
    return [
        write_picture(folder / "samples.png", [_rows(samples, labels)]),
        write_picture(folder / "samples.webp", _films(samples, labels), **options),
    ]


def _named(path: Path) -> re.Match[str] | None:
    return _SAMPLE.fullmatch(path.name)


def _small(frame: Any) -> Any:
    frame.thumbnail((_SIDE, _SIDE))
    return frame


def _label(step: int, scores: Mapping[str, float], marks: Sequence[str]) -> str:
    names = {"held_out_loss": "loss", "sample_motion": "motion", "sample_likeness": "likeness"}
    values = [f"{names[name]} {value:.3g}" for name, value in scores.items() if name in names]
    noted = f" ({', '.join(marks)})" if marks else ""
    return f"step {step}{noted}\n{', '.join(values)}"


def _rows(samples: Sequence[Sample], labels: Mapping[int, str]) -> Any:
    """One row per sample, with evenly spaced frames."""
    width, height = samples[0].frames[0].size
    sheet, draw = _sheet(width * _FRAMES, (height + _LABEL) * len(samples))
    for row, sample in enumerate(samples):
        top, last = row * (height + _LABEL), len(sample.frames) - 1
        draw.text((4, top + 2), labels[sample.step], fill=(0, 0, 0))
        for column in range(min(_FRAMES, len(sample.frames))):
            frame = round(column * last / max(min(_FRAMES, len(sample.frames)) - 1, 1))
            sheet.paste(sample.frames[frame], (column * width, top + _LABEL))
    return sheet


def _films(samples: Sequence[Sample], labels: Mapping[int, str]) -> list[Any]:
    """The samples in a grid, frame by frame; shorter ones hold their last frame."""
    width, height = samples[0].frames[0].size
    columns = math.ceil(math.sqrt(len(samples)))
    size = (max(width, 150), height + _LABEL)
    films = []
    for frame in range(max(len(sample.frames) for sample in samples)):
        sheet, draw = _sheet(size[0] * columns, size[1] * math.ceil(len(samples) / columns))
        for place, sample in enumerate(samples):
            left, top = place % columns * size[0], place // columns * size[1]
            draw.text((left + 4, top + 2), labels[sample.step], fill=(0, 0, 0))
            shown = sample.frames[min(frame, len(sample.frames) - 1)]
            sheet.paste(shown, (left, top + _LABEL))
        films.append(sheet)
    return films


def _sheet(width: int, height: int) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    return sheet, ImageDraw.Draw(sheet)


def write_picture(path: Path, images: Sequence[Any], **options: Any) -> Path:
    """Write a picture, or several as an animation.

    Args:
        options: of the encoder.

    Raises:
        LampError: it cannot be written.
    """
    first, *others = images
    kind = path.suffix.removeprefix(".").upper()
    if others:
        options |= {"save_all": True, "append_images": others}
    try:
        return write_file(path, lambda temporary: first.save(temporary, format=kind, **options))
    except OSError as error:
        raise LampError(
            f"The picture {path.name} could not be written: {error}. "
            f"{write_advice(error, path.parent)}, or set sample_every to 0."
        ) from error
