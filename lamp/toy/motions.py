"""The motions of the sprite world: where they start, and how they change a scene.

``amount`` is in the unit of the motion (pixels, radians, hops, swings) and grows by ``pace`` times
the clip's speed per frame. Objects turn and grow around their visible centre: a picture of a moon
does not tell where the centre of its circle is. At every speed from 0.9 to 1.1 the objects of all
motions except 'moves right' stay inside the picture and visibly differ from frame 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from .shapes import SHAPES
from .world import FRAMES, SMALL_RADIUS, USUAL_RADIUS, Array, Scenes, centred, visible_centre

Objects = tuple[Scenes, ...]
Range = tuple[float, float]

HOP_HEIGHT = 8.0  # pixels
SWING_REACH = 5.5  # pixels to either side

# Angle in degrees after which a shape looks the same; 0 for every angle.
TURN_PERIODS = {
    "disc": 0, "ring": 0, "star": 72, "moon": 360, "heart": 360, "square": 90, "triangle": 120,
    "diamond": 180, "cross": 90, "drop": 360,
}  # fmt: skip
# 7 steps of 5.8 degrees at speed 1.1 stay below half of a square's period, so that a clockwise turn
# never looks like the opposite one. A star's period is too short.
TURN_PACE = np.deg2rad(5.8)
TURNING = tuple(name for name in SHAPES if TURN_PERIODS[name] >= 90)


@dataclass(frozen=True)
class Part:
    """One object of a motion: range of start positions and radius, and its change by an amount."""

    x: Range
    y: Range
    change: Callable[[Scenes, Array], Scenes]
    radius: Range = USUAL_RADIUS


@dataclass(frozen=True)
class MotionKind:
    """A motion of the world. ``seen_in``: the property of the object's mask that shows it."""

    prompt: str
    pace: float  # nominal amount per frame
    parts: tuple[Part, ...]
    seen_in: Literal["place", "angle", "size"] = "place"
    shapes: tuple[str, ...] = SHAPES


def _right(scenes: Scenes, amount: Array) -> Scenes:
    return replace(scenes, x=scenes.x + amount)


def _left(scenes: Scenes, amount: Array) -> Scenes:
    return replace(scenes, x=scenes.x - amount)


def _turn(scenes: Scenes, amount: Array) -> Scenes:
    """Clockwise, around its visible centre."""
    return centred(replace(scenes, angle=scenes.angle + amount), visible_centre(scenes))


def _grow(scenes: Scenes, amount: Array) -> Scenes:
    """Around its visible centre."""
    return centred(replace(scenes, radius=scenes.radius + amount), visible_centre(scenes))


def _hop(scenes: Scenes, amount: Array) -> Scenes:
    """Parabolas above the floor, one per hop; integers are touchdowns."""
    share = amount % 1.0
    return replace(scenes, y=scenes.y - HOP_HEIGHT * 4.0 * share * (1.0 - share))


def _swing(scenes: Scenes, amount: Array) -> Scenes:
    """To the right first."""
    return replace(scenes, x=scenes.x + SWING_REACH * np.sin(2.0 * np.pi * amount))


MOTIONS: dict[str, MotionKind] = {
    "moves_right": MotionKind("moves right", 2.0, (Part((7.5, 10.5), (9.0, 23.0), _right),)),
    "rotate": MotionKind(
        "turns", TURN_PACE, (Part((9.0, 23.0), (9.0, 23.0), _turn),), "angle", TURNING
    ),
    "grow": MotionKind(
        "grows", 0.45, (Part((11.0, 21.0), (11.0, 21.0), _grow, (3.6, 4.2)),), "size"
    ),
    "bounce": MotionKind("jumps", 1.0 / 6.0, (Part((9.0, 23.0), (17.5, 22.5), _hop),)),
    "wave": MotionKind("waves", 1.0 / 8.0, (Part((14.5, 17.5), (9.0, 23.0), _swing),)),
    # The upper object slides to the right, the lower one to the left.
    "two_objects": MotionKind(
        "slides",
        2.0,
        (
            Part((6.5, 9.5), (7.0, 9.0), _right, SMALL_RADIUS),
            Part((22.5, 25.5), (23.0, 25.0), _left, SMALL_RADIUS),
        ),
    ),
}


def perform(
    objects: Objects, motion: str, frames: int = FRAMES, speed: Array | None = None
) -> Objects:
    """The scenes (n f) of each object in all frames; ``speed`` (n,) multiplies the pace."""
    kind = MOTIONS[motion]
    speed = np.ones(len(objects[0])) if speed is None else speed
    amount = (kind.pace * speed[:, None] * np.arange(frames)[None]).reshape(-1)
    return tuple(
        part.change(scenes.repeat(frames), amount)
        for part, scenes in zip(kind.parts, objects, strict=True)
    )
