"""The shapes of the sprite world, as signed distances.

Each function takes unit coordinates (u right, v down; the object has about radius 1) and returns a
distance that is negative inside. All shapes have about the same area.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _polygon(points: Array) -> Callable[[Array, Array], Array]:
    """Distance to a closed polygon, even-odd rule; ``points`` is (corners, 2)."""

    def distance(u: Array, v: Array) -> Array:
        nearest = np.full(u.shape, np.inf)
        inside = np.zeros(u.shape, dtype=bool)
        for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            px, py = u - ax, v - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
            nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
            if ey != 0.0:
                crosses = (ay > v) != (by > v)
                inside ^= crosses & (u < ax + ex * (v - ay) / ey)
        return np.where(inside, -nearest, nearest)

    return distance


def _spikes(corners: int, outer: float, inner: float | None = None) -> Array:
    """Corners of a star, or of a regular polygon without ``inner``; the first points up."""
    count = corners if inner is None else 2 * corners
    turn = 2.0 * np.pi * np.arange(count) / count
    length = np.full(count, outer)
    if inner is not None:
        length[1::2] = inner
    return np.stack([length * np.sin(turn), -length * np.cos(turn)], axis=1)


def _disc(u: Array, v: Array) -> Array:
    return np.hypot(u, v) - 0.92


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.hypot(u, v) - 0.76) - 0.27


def _moon(u: Array, v: Array) -> Array:
    return np.maximum(np.hypot(u, v) - 1.05, 0.80 - np.hypot(u - 0.62, v))


_heart_tip = _polygon(np.array([[-0.98, -0.10], [0.0, 1.05], [0.98, -0.10], [0.0, -0.45]]))
_drop_tip = _polygon(np.array([[0.0, -1.25], [0.66, 0.12], [-0.66, 0.12]]))


def _heart(u: Array, v: Array) -> Array:
    lobes = np.hypot(np.abs(u) - 0.52, v + 0.40) - 0.56
    return np.minimum(lobes, _heart_tip(u, v))


def _drop(u: Array, v: Array) -> Array:
    return np.minimum(np.hypot(u, v - 0.38) - 0.72, _drop_tip(u, v))


def _cross(u: Array, v: Array) -> Array:
    wide = np.maximum(np.abs(u) - 1.02, np.abs(v) - 0.36)
    tall = np.maximum(np.abs(v) - 1.02, np.abs(u) - 0.36)
    return np.minimum(wide, tall)


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.83


DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "ring": _ring,
    "star": _polygon(_spikes(5, 1.30, 0.58)),
    "moon": _moon,
    "heart": _heart,
    "square": _square,
    "triangle": _polygon(_spikes(3, 1.28)),
    "diamond": _polygon(np.array([[0.0, -1.28], [0.86, 0.0], [0.0, 1.28], [-0.86, 0.0]])),
    "cross": _cross,
    "drop": _drop,
}

SHAPES = tuple(DISTANCES)


@cache
def centres() -> Array:
    """Centre of area (shapes, 2) of each shape in unit coordinates, u and v."""
    side = (np.arange(600) + 0.5) / 200.0 - 1.5
    u, v = np.meshgrid(side, side)
    inside = [distance(u, v) < 0.0 for distance in DISTANCES.values()]
    return np.array([[u[seen].mean(), v[seen].mean()] for seen in inside])
