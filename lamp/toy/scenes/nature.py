"""Waterfall, rain, firework and birds: drawings in any phase, and where their parts are.

``phase`` means: waterfall and rain, pixels fallen; firework, progress from 0 to 1; birds, beats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .canvas import SIZE, Canvas, mix
from .scene import Scene, darker, lighter

Array = NDArray[np.float64]
TAU = 2.0 * np.pi


# --- waterfall ------------------------------------------------------------------------------

FALL_TOP, FALL_END, FALL_HALF = 12.0, 52.0, 9.5


def streaks(scene: Scene) -> Array:
    """(n, 4): x, top, bottom and brightness of the streaks, not yet cut to the water."""
    detail, height = scene.random(2), FALL_END - FALL_TOP + 14.0
    columns = np.repeat(np.linspace(-7.4, 7.4, 5), 3) + detail.uniform(-0.4, 0.4, 15)
    starts = np.tile(np.arange(3) / 3.0, 5) + np.repeat(detail.random(5), 3)
    starts += detail.uniform(-0.08, 0.08, 15)
    tops = FALL_TOP - 14.0 + (starts * height + scene.phase) % height
    lengths, light = detail.uniform(8.0, 12.0, 15), np.tile([1.0, 0.0, 1.0], 5)
    return np.stack([scene.x + columns, tops, tops + lengths, light], axis=1)


def draw_waterfall(canvas: Canvas, scene: Scene) -> None:
    x, rock = scene.x, scene.paint
    detail = scene.random(3)
    water, foam = scene.tinted((92, 170, 228)), scene.tinted((240, 250, 255))
    for side in (-1, 1):
        bumps = detail.uniform(-2.0, 2.0, 5)
        rim = [
            (x + side * 8, FALL_TOP - 2),
            (x + side * 17, FALL_TOP + bumps[0]),
            (x + side * (23 + bumps[1]), 24),
            (x + side * (27 + bumps[2]), 40),
            (x + side * 31, 58),
            (x + side * 8, 58),
        ]
        canvas.polygon(rim, rock)
        for row, y in enumerate((22.0, 33.0, 44.0)):
            left = x + side * (11.5 + row + bumps[3])
            canvas.line([(left, y), (left + side * 6.0, y + 1.5)], 1.6, darker(rock, 0.35))
    canvas.ellipse(x, 58, 27, 7.0, darker(water, 0.2))
    canvas.moving = True
    left, right = x - FALL_HALF, x + FALL_HALF
    canvas.polygon(
        [(left, FALL_TOP), (right, FALL_TOP), (right + 1, FALL_END + 2), (left - 1, FALL_END + 2)],
        water,
    )
    canvas.subject = False  # streaks have no outlines
    for column, top, end, bright in streaks(scene):
        top, end = max(top, FALL_TOP + 1), min(end, FALL_END)
        if end - top > 0.5:
            canvas.line([(column, top), (column, end)], 2.4, foam if bright else darker(water, 0.4))
    canvas.moving, canvas.subject = False, True
    canvas.line([(left - 1, FALL_TOP), (right + 1, FALL_TOP)], 1.8, mix(foam, water, 0.3))
    canvas.subject = False
    for step in range(6):
        swell = 1.0 + 0.25 * np.sin(TAU * (scene.phase / 16.0 + step / 6.0))
        canvas.ellipse(x - 10 + 4.0 * step, FALL_END + 3, 3.2 * swell, 2.4 * swell, foam)


# --- rain -----------------------------------------------------------------------------------

RAIN_SLANT, DROP = 0.25, 5.5  # sideways per pixel fallen; length


def drops(scene: Scene) -> Array:
    """Heads (n, 2) of the drops. A drop that leaves at the bottom enters at the top again."""
    detail, height, columns = scene.random(2), SIZE + 8.0, 6
    x = (np.repeat(np.arange(columns), 4) + detail.uniform(0.15, 0.85, 24)) * SIZE / columns
    y = (np.tile(np.arange(4), columns) + np.repeat(detail.random(columns), 4)) * height / 4
    fallen = (y + detail.uniform(-2.5, 2.5, 24) + scene.phase) % height
    return np.stack([(x - RAIN_SLANT * fallen) % SIZE, fallen - 1.0], axis=1)


def draw_rain(canvas: Canvas, scene: Scene) -> None:
    x, y, main = scene.x, scene.y, scene.paint
    coat, skin = scene.tinted((72, 74, 100)), scene.tinted((240, 196, 160))
    canvas.line([(x - 2, y + 22), (x - 2, y + 30)], 3.0, darker(coat))
    canvas.line([(x + 3, y + 22), (x + 3, y + 30)], 3.0, darker(coat))
    canvas.polygon([(x - 5, y + 9), (x + 5.5, y + 9), (x + 8, y + 24), (x - 7, y + 24)], coat)
    canvas.ellipse(x, y + 5, 4.4, 4.6, skin)
    canvas.line([(x + 4.5, y - 10), (x + 4.5, y + 15)], 1.4, scene.tinted((90, 66, 54)))
    canvas.line([(x + 1, y + 12), (x + 4.5, y + 14)], 2.4, lighter(coat, 0.15))
    dome = np.linspace(np.pi, TAU, 15)
    rim = np.stack([x + 4.5 + 16 * np.cos(dome), y + 13 * np.sin(dome)], axis=1)
    scallops = [
        (x + 4.5 + s, y + (0.0 if i % 2 else -2.2))
        for i, s in enumerate(np.linspace(10.7, -10.7, 5), 0)
    ]
    canvas.polygon([*rim, *scallops], main)
    canvas.polygon([(x + 4.5, y - 13), (x + 10, y - 1), (x - 1, y - 1)], lighter(main))
    canvas.moving, canvas.subject = True, False
    wet = scene.tinted((226, 240, 255))
    for drop_x, drop_y in drops(scene):
        canvas.line([(drop_x + RAIN_SLANT * DROP, drop_y - DROP), (drop_x, drop_y)], 1.5, wet)


# --- firework -------------------------------------------------------------------------------

SPARKS, BURST, SAG = 10, 22.0, 6.0


def sparks(scene: Scene, phase: float | None = None) -> Array:
    """Heads (n, 2) of the sparks: they fly apart ever slower and sag."""
    detail, p = scene.random(2), scene.phase if phase is None else phase
    angle = TAU * (np.arange(SPARKS) + detail.uniform(-0.25, 0.25, SPARKS)) / SPARKS
    radius = BURST * detail.uniform(0.8, 1.0, SPARKS) * (1.0 - (1.0 - p) ** 2)
    x, y = scene.x + radius * np.cos(angle), scene.y + radius * np.sin(angle)
    return np.stack([x, y + SAG * p * p], axis=1)


def draw_firework(canvas: Canvas, scene: Scene) -> None:
    main = mix(scene.paint, (255, 255, 255), 0.15)
    canvas.moving, canvas.subject = True, False
    p = scene.phase
    heads, tails = sparks(scene), sparks(scene, max(0.0, p - 0.16 - 0.2 * p))
    glow = mix(main, (255, 250, 220), 0.75)
    for head, tail in zip(heads, tails, strict=True):
        canvas.line([tail, head], 2.2, mix(main, (90, 70, 130), 0.1 + 0.3 * p))
    for head in heads:
        canvas.dot(head, 2.1, mix(glow, main, 0.6 * p))
    core = 4.0 * (1.0 - p)
    if core > 0.4:
        canvas.ellipse(scene.x, scene.y, core, core, (255, 252, 230))


# --- birds ----------------------------------------------------------------------------------

TOGETHER = 0.05  # of a beat, the most between two birds
FLOCK = np.array([(10.0, 0.0), (-1.0, -10.0), (-2.0, 11.0), (-11.0, 1.0)])


def birds(scene: Scene) -> tuple[Array, Array]:
    """Places (n, 2) of the birds, and the angle (n,) of their wings above the level."""
    detail = scene.random(2)
    places = FLOCK + detail.uniform(-1.2, 1.2, FLOCK.shape)
    beat = TAU * (scene.phase + TOGETHER * detail.random(len(FLOCK)))
    return places + np.array([scene.x, scene.y]), 0.15 + 0.75 * np.sin(beat)


def draw_birds(canvas: Canvas, scene: Scene) -> None:
    main, beak = scene.paint, scene.tinted((250, 176, 60))
    wing = darker(main, 0.18)
    canvas.moving = True
    for (x, y), angle in zip(*birds(scene), strict=True):
        for side in (-1.0, 1.0):
            elbow = (x + side * 4.2, y - 5.4 * np.sin(angle))
            tip = (x + side * 8.6 * np.cos(0.6 * angle), y - 7.6 * np.sin(1.2 * angle) + 1.2)
            root = (x + side * 0.8, y + 1.6)
            canvas.polygon(
                [(x + side * 0.8, y - 1.2), elbow, tip, (elbow[0], elbow[1] + 3.0), root], wing
            )
        canvas.ellipse(x + 0.4, y + 0.6, 3.4, 2.3, main)
        canvas.polygon([(x + 3.2, y - 0.2), (x + 5.6, y + 0.8), (x + 3.2, y + 1.6)], beak)
