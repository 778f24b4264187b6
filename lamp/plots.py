"""Pictures of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MARGIN = (56, 16, 16, 28)  # left, top, right, bottom, in pixels
_RAW, _SMOOTH, _AXIS, _PAPER = (168, 198, 232), (24, 84, 168), (96, 96, 96), (255, 255, 255)


def smooth(losses: Sequence[float], decay: float = 0.97) -> list[float]:
    """Exponential moving average, corrected for its start."""
    average, out = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * loss
        out.append(average / (1 - decay**number))
    return out


def loss_plot(losses: Sequence[float], width: int = 640, height: int = 360) -> Tensor:
    """Raw and smoothed loss over the steps, on a logarithmic scale: IMAGE `1 h w 3` in 0..1."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = _MARGIN
    box = (left, top, width - right, height - bottom)
    draw.rectangle(box, outline=_AXIS)
    if losses:
        _draw_curves(draw, losses, box)
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.view(1, height, width, 3).float() / 255


def _draw_curves(draw: object, losses: Sequence[float], box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    logs = [math.log10(max(loss, 1e-12)) for loss in losses]
    low, high = min(logs), max(logs)
    span = (high - low) or 1.0  # a constant loss is a flat line, not a division by zero

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        across = max(len(values) - 1, 1)
        return [
            (
                left + (right - left) * i / across,
                bottom - (bottom - top) * (math.log10(max(value, 1e-12)) - low) / span,
            )
            for i, value in enumerate(values)
        ]

    for values, colour, thick in ((losses, _RAW, 1), (smooth(losses), _SMOOTH, 2)):
        draw.line(points(values), fill=colour, width=thick)  # type: ignore[attr-defined]
    for text, place in (
        (f"{10**high:.3g}", (6, top)),
        (f"{10**low:.3g}", (6, bottom - 12)),
        ("1", (left, bottom + 6)),
        (f"step {len(losses)}", (right - 64, bottom + 6)),
        (f"loss, smoothed {smooth(losses)[-1]:.4f}", (left + 12, top + 6)),
    ):
        draw.text(place, text, fill=_AXIS)  # type: ignore[attr-defined]
