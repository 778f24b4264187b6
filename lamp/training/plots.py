"""The loss plot of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MARGIN = (56, 16, 16, 28)  # left, top, right, bottom, in pixels
_RAW, _SMOOTH, _HELD_OUT = (168, 198, 232), (24, 84, 168), (214, 96, 24)
_AXIS, _PAPER = (96, 96, 96), (255, 255, 255)


def smooth(losses: Sequence[float], decay: float = 0.97) -> list[float]:
    """Bias-corrected exponential moving average."""
    average, out = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * loss
        out.append(average / (1 - decay**number))
    return out


def loss_plot(
    losses: Sequence[float],
    validation: Sequence[tuple[int, float]] = (),
    width: int = 640,
    height: int = 360,
) -> Tensor:
    """Raw and smoothed loss over the steps, on a logarithmic scale: IMAGE `1 h w 3` in 0..1.

    Args:
        losses: one per step.
        validation: (step, loss on held-out clips); steps count from 1.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = _MARGIN
    box = (left, top, width - right, height - bottom)
    draw.rectangle(box, outline=_AXIS)
    if losses:
        _draw_curves(draw, losses, validation, box)
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.view(1, height, width, 3).float() / 255


def _draw_curves(
    draw: Any,
    losses: Sequence[float],
    validation: Sequence[tuple[int, float]],
    box: tuple[int, int, int, int],
) -> None:
    left, top, right, bottom = box
    logs = [_log(loss) for loss in (*losses, *(loss for _, loss in validation))]
    low, high = min(logs), max(logs)
    span = (high - low) or 1.0  # a constant loss is a flat line, not a division by zero
    across = max(len(losses) - 1, 1)

    def point(step: int, loss: float) -> tuple[float, float]:
        return (
            left + (right - left) * (step - 1) / across,
            bottom - (bottom - top) * (_log(loss) - low) / span,
        )

    smoothed = smooth(losses)
    for values, colour, thick in ((losses, _RAW, 1), (smoothed, _SMOOTH, 2)):
        points = [point(step, loss) for step, loss in enumerate(values, start=1)]
        draw.line(points, fill=colour, width=thick)
    held_out = [point(step, loss) for step, loss in validation]
    draw.line(held_out, fill=_HELD_OUT, width=2)
    for x, y in held_out:  # a single one makes no line
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_HELD_OUT)
    draw.text((6, top), f"{10**high:.3g}", fill=_AXIS)
    draw.text((6, bottom - 12), f"{10**low:.3g}", fill=_AXIS)
    draw.text((left, bottom + 6), "1", fill=_AXIS)
    draw.text((right - 64, bottom + 6), f"step {len(losses)}", fill=_AXIS)
    draw.text((left + 12, top + 6), f"loss, smoothed {smoothed[-1]:.4f}", fill=_SMOOTH)
    if validation:
        draw.text(
            (left + 12, top + 20), f"on held-out clips {validation[-1][1]:.4f}", fill=_HELD_OUT
        )


def _log(loss: float) -> float:
    return math.log10(max(loss, 1e-12))
