"""Helicopter, horse, face and guitarist: drawings in any pose, and where their joints are.

``phase`` means: helicopter, turns of the rotor; horse, gallop cycles; smile, progress from 0 to 1;
guitar, strums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .canvas import Canvas, mix
from .scene import Scene, darker, lighter

Array = NDArray[np.float64]
TAU = 2.0 * np.pi


# --- helicopter -----------------------------------------------------------------------------


def draw_helicopter(canvas: Canvas, scene: Scene) -> None:
    x, y, main = scene.x, scene.y, scene.paint
    dark, turn = scene.time in ("dusk", "night"), TAU * scene.phase
    steel = scene.tinted((206, 210, 226) if dark else (58, 60, 74))
    canvas.moving = True
    canvas.line([(x - 4, y + 6.5), (x - 4, y + 3)], 1.2, steel)
    canvas.line([(x + 3, y + 6.5), (x + 3, y + 3)], 1.2, steel)
    canvas.line([(x - 8, y + 7), (x + 7, y + 7), (x + 8.5, y + 6)], 1.3, steel)
    canvas.polygon([(x - 4, y - 3), (x - 16, y - 2.2), (x - 16, y - 0.4), (x - 4, y + 3)], main)
    canvas.polygon(
        [(x - 18, y - 6.5), (x - 15, y - 5.5), (x - 13.5, y - 0.5), (x - 16.5, y - 0.2)],
        darker(main),
    )
    canvas.ellipse(x, y, 8.0, 5.2, main)
    canvas.ellipse(x + 4.0, y - 1.0, 3.4, 2.8, scene.tinted((190, 230, 250)))
    canvas.line([(x - 6, y + 2.4), (x + 4.5, y + 2.6)], 1.2, lighter(main))
    canvas.line([(x, y - 5), (x, y - 7.5)], 1.5, steel)
    reach = 14.0 * np.cos(turn)
    canvas.line(
        [(x - reach, y - 7.6 + 0.9 * np.sin(turn)), (x + reach, y - 7.6 - 0.9 * np.sin(turn))],
        1.6,
        steel,
    )
    tail = 3.6 * np.array([np.cos(1.5 * turn), np.sin(1.5 * turn)])
    canvas.line(
        [(x - 16.4 - tail[0], y - 3 - tail[1]), (x - 16.4 + tail[0], y - 3 + tail[1])], 1.2, steel
    )


# --- horse ----------------------------------------------------------------------------------

LEGS = ((-9.5, 0.0), (-7.5, 0.14), (7.5, 0.56), (9.5, 0.44))  # hip or shoulder, offset of the cycle
THIGH, SHIN = 7.0, 7.5


def leg_angles(phase: float) -> Array:
    """(4, 2): angle of the upper and lower leg from straight down, in radians, forward positive."""
    cycle = TAU * (phase + np.array([offset for _, offset in LEGS]))
    upper = 0.75 * np.sin(cycle)
    bend = 0.25 + 0.75 * np.clip(np.cos(cycle), 0.0, 1.0)  # lifted while it swings forward
    return np.stack([upper, upper - bend], axis=1)


def horse_joints(scene: Scene) -> Array:
    """(4, 3, 2): hip, knee and hoof of each leg."""
    bob = 1.3 * np.sin(TAU * scene.phase)
    angles = leg_angles(scene.phase)
    hips = np.array([(scene.x + dx, scene.y + 3.0 + bob) for dx, _ in LEGS])
    step = lambda a, length: length * np.stack([np.sin(a), np.cos(a)], axis=1)  # noqa: E731
    knees = hips + step(angles[:, 0], THIGH)
    return np.stack([hips, knees, knees + step(angles[:, 1], SHIN)], axis=1)


def draw_horse(canvas: Canvas, scene: Scene) -> None:
    main, legs = scene.paint, horse_joints(scene)
    x, y = scene.x, scene.y + 1.3 * np.sin(TAU * scene.phase)
    sway = 1.6 * np.sin(TAU * scene.phase + 1.0)
    mane, hoof = darker(main, 0.62), scene.tinted((48, 38, 44))
    canvas.moving = True
    for leg in (0, 3):  # the far side
        canvas.line(legs[leg], 3.0, darker(main, 0.34))
        canvas.dot(legs[leg, 2], 1.5, hoof)
    canvas.line([(x - 12, y - 3), (x - 17, y - 3 + 0.5 * sway), (x - 20, y + 3 + sway)], 2.8, mane)
    canvas.polygon([(x + 5, y - 4), (x + 13, y - 14), (x + 17, y - 11), (x + 12.5, y + 2)], main)
    canvas.ellipse(x, y, 13.0, 6.0, main)
    for leg in (1, 2):
        canvas.line(legs[leg], 3.4, main)
        canvas.dot(legs[leg, 2], 1.65, hoof)
    nod = 0.5 * sway
    canvas.polygon(
        [
            (x + 12, y - 15),
            (x + 16, y - 16),
            (x + 23, y - 9.5 + nod),
            (x + 21, y - 7 + nod),
            (x + 15, y - 9),
        ],
        main,
    )
    canvas.polygon([(x + 13, y - 15), (x + 14, y - 18.5), (x + 16, y - 15)], main)
    canvas.line([(x + 5, y - 6), (x + 9.5, y - 11.5), (x + 12.5, y - 15)], 2.2, mane)
    canvas.subject = False
    canvas.ellipse(x + 16.8, y - 12.6, 0.9, 0.9, hoof)
    canvas.line([(x - 7, y - 3.2), (x + 4, y - 3.4)], 1.5, lighter(main, 0.3))


# --- smile ----------------------------------------------------------------------------------


def mouth(phase: float) -> tuple[float, float]:
    """Half width of the mouth, and height of its middle below its corners (negative: sad)."""
    return 5.0 + 3.6 * phase, -1.6 + 6.4 * phase


def draw_smile(canvas: Canvas, scene: Scene) -> None:
    x, y, hair, p = scene.x, scene.y, scene.paint, scene.phase
    skin, dark = scene.tinted((250, 208, 172)), scene.tinted((52, 36, 48))
    canvas.polygon(
        [(x - 21, 66), (x - 17, y + 23), (x, y + 17), (x + 17, y + 23), (x + 21, 66)],
        scene.tinted((88, 108, 150)),
    )
    canvas.ellipse(x, y - 2, 19.5, 20.5, hair)
    canvas.polygon(
        [
            (x - 19.5, y),
            (x + 19.5, y),
            (x + 18, y + 22),
            (x + 10, y + 19),
            (x - 10, y + 19),
            (x - 18, y + 22),
        ],
        hair,
    )
    canvas.polygon(
        [(x - 4.5, y + 10), (x + 4.5, y + 10), (x + 5, y + 21), (x - 5, y + 21)], darker(skin, 0.12)
    )
    canvas.ellipse(x, y + 1, 14.0, 16.5, skin)
    canvas.moving = True
    canvas.subject = False
    blush = mix(skin, (244, 110, 110), 0.15 + 0.5 * p)
    for side in (-1.0, 1.0):
        canvas.ellipse(x + side * 9.2, y + 6.6 - p, 3.0, 2.2, blush)
        canvas.ellipse(x + side * 6.0, y - 1.0, 3.2, 3.3 - 1.5 * p, (250, 250, 250))
        canvas.ellipse(x + side * 6.0, y - 0.8, 1.9, 2.2 - 0.9 * p, dark)
        brow = y - 6.0 - 1.6 * p
        canvas.line(
            [
                (x + side * 3.4, brow + 1.0 - p),
                (x + side * 6.0, brow - 0.8 * p),
                (x + side * 8.6, brow + p),
            ],
            1.3,
            dark,
        )
    half, sag = mouth(p)
    across = np.linspace(-1.0, 1.0, 11)
    lower = np.stack([x + half * across, y + 10.0 + sag * (1.0 - across**2) - 0.5 * sag], axis=1)
    upper = np.stack(
        [x + half * across, y + 10.0 + 0.45 * sag * (1.0 - across**2) - 0.5 * sag], axis=1
    )
    if p > 0.35:
        canvas.polygon([*lower, *upper[::-1]], (252, 250, 246))
        canvas.line(upper, 1.3, scene.tinted((170, 40, 60)))
    canvas.line(lower, 1.8, scene.tinted((170, 40, 60)))
    canvas.moving, canvas.subject = False, True
    fringe = np.linspace(np.pi, TAU, 11)
    arc = np.stack([x + 15.0 * np.cos(fringe), y - 3 + 15.5 * np.sin(fringe)], axis=1)
    canvas.polygon(
        [*arc, (x + 11, y - 7.0), (x + 3, y - 10.5), (x - 6, y - 8.0), (x - 12, y - 4)], hair
    )


# --- guitar ---------------------------------------------------------------------------------


def strum_angle(phase: float) -> float:
    """Angle of the forearm in radians; 0 points along the strings' middle, positive is down."""
    return 0.62 * float(np.sin(TAU * phase))


def guitar_joints(scene: Scene) -> Array:
    """(3, 2): shoulder, elbow and hand of the strumming arm."""
    x, y = scene.x, scene.y
    elbow, angle = np.array([x - 16.0, y + 14.0]), -0.10 + strum_angle(scene.phase)
    hand = elbow + 13.5 * np.array([np.cos(angle), np.sin(angle)])
    return np.array([(x - 9.0, y + 1.0), elbow, hand])


def draw_guitar(canvas: Canvas, scene: Scene) -> None:
    x, y, shirt = scene.x, scene.y, scene.paint
    skin, dark = scene.tinted((236, 186, 146)), scene.tinted((58, 40, 40))
    wood, neck = scene.tinted((196, 122, 58)), scene.tinted((96, 60, 40))
    canvas.polygon(
        [(x - 9, y + 20), (x + 10, y + 20), (x + 13, 66), (x - 13, 66)], scene.tinted((60, 72, 116))
    )
    canvas.polygon(
        [
            (x - 11, y - 1),
            (x - 5, y - 4),
            (x + 6, y - 4),
            (x + 12, y - 1),
            (x + 10, y + 24),
            (x - 9, y + 24),
        ],
        shirt,
    )
    canvas.ellipse(x + 0.5, y - 11.8, 7.2, 7.4, dark)
    canvas.ellipse(x + 1.2, y - 10.0, 5.8, 6.6, skin)
    canvas.polygon(
        [(x - 6, y - 12), (x + 1, y - 18.5), (x + 7.5, y - 12.5), (x + 1, y - 14.5)], dark
    )
    canvas.line([(x - 1.0, y - 10.5), (x - 1.0, y - 10.0)], 1.4, dark)
    canvas.line([(x + 3.8, y - 10.5), (x + 3.8, y - 10.0)], 1.4, dark)
    canvas.line([(x + 11, y + 1), (x + 17, y + 10), (x + 21, y + 4)], 3.6, darker(shirt, 0.18))
    canvas.line([(x + 4, y + 13), (x + 27, y + 0.5)], 2.4, neck)
    canvas.ellipse(x + 21.5, y + 3.6, 2.4, 2.4, skin)
    canvas.ellipse(x - 3.5, y + 16.5, 8.4, 7.6, wood)
    canvas.ellipse(x + 5.0, y + 12.5, 5.6, 5.2, wood)
    canvas.subject = False
    canvas.ellipse(x + 0.5, y + 14.6, 2.6, 2.6, neck)
    canvas.subject = canvas.moving = True
    shoulder, elbow, hand = guitar_joints(scene)
    canvas.line([shoulder, elbow], 4.2, shirt)
    canvas.line([elbow, hand], 3.4, lighter(shirt, 0.3))
    canvas.dot(hand, 2.5, skin)
