"""Draws scenes: a landscape and one subject."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import figures, nature
from .canvas import Canvas
from .landscape import draw_landscape
from .scene import Scene

SUBJECTS: dict[str, Callable[[Canvas, Scene], None]] = {
    "helicopter": figures.draw_helicopter,
    "waterfall": nature.draw_waterfall,
    "rain": nature.draw_rain,
    "firework": nature.draw_firework,
    "horse": figures.draw_horse,
    "birds": nature.draw_birds,
    "smile": figures.draw_smile,
    "guitar": figures.draw_guitar,
}


def draw(scene: Scene, moving: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The picture (64, 64, 3) as bytes, and the coverage (64, 64) in 0..1 of what moves.

    Without ``moving``, what moves is left out of the picture.
    """
    canvas = Canvas(scene.look, hides=not moving)
    wet = scene.kind == "rain"
    draw_landscape(canvas, scene.place, scene.time, scene.random(1), wet)
    canvas.subject = True
    SUBJECTS[scene.kind](canvas, scene)
    return canvas.finish()


def draw_all(scenes: list[Scene]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pictures (n, 64, 64, 3) and coverages (n, 64, 64)."""
    drawn = [draw(scene) for scene in scenes]
    return np.stack([image for image, _ in drawn]), np.stack([cover for _, cover in drawn])
