"""Position, size and angle of a toy object in generated frames.

The true colour and background are known, so pixels can be classified. Lengths are in pixels, angles
in radians.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .cases import Target
from .motions import TURN_PERIODS
from .shapes import SHAPES
from .world import centred, coverage

Colour = tuple[int, int, int]
Array = NDArray[np.float64]
Masks = NDArray[np.bool_]

ANGLE_STEPS = np.deg2rad([6.0, 1.0])  # a coarse search, then a fine one


def object_mask(frames: NDArray[np.uint8], colour: Colour, ground: Array) -> Masks:
    """Pixels (..., h, w) closer to the object's colour than to the background.

    ``ground`` is the true background (h, w, 3) with its texture. A colour far from both (a smear,
    another object) does not count as the object.
    """
    to_object, to_ground = _distance(frames, colour), _distance(frames, ground)
    return (to_object < to_ground) & (to_object < 0.6 * _distance(ground, colour))


def object_cover(frames: NDArray[np.uint8], colour: Colour, ground: Array) -> Array:
    """Share (f, h, w) in 0..1 of each pixel that the object covers, from the blend of colours.

    Only in and around the mask of a single object; elsewhere a blend is flicker of the background.
    """
    to_object, to_ground = _distance(frames, colour), _distance(frames, ground)
    share = to_ground / np.maximum(to_object + to_ground, 1e-6)
    return share * _widened(object_mask(frames, colour, ground))


def _distance(pixels: NDArray[np.uint8] | Array, other: Colour | Array) -> Array:
    return np.linalg.norm(pixels.astype(float) - np.asarray(other, dtype=float), axis=-1)


def _widened(masks: Masks) -> Masks:
    """Dilated by one pixel in all eight directions."""
    height, width = masks.shape[-2:]
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(shifted)


def centroids(cover: Masks | Array) -> Array:
    """Centres (f, 2) as x, y; NaN without an object."""
    rows, columns = np.mgrid[: cover.shape[-2], : cover.shape[-1]] + 0.5
    area = cover.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (cover * columns).sum((-2, -1)) / area
        y = (cover * rows).sum((-2, -1)) / area
    return np.stack([x, y], axis=-1)


def overlap(cover: Masks | Array, truth: Masks | Array) -> Array:
    """Intersection over union per frame; 1 if both are empty."""
    union = np.maximum(cover, truth).sum((-2, -1))
    both = np.minimum(cover, truth).sum((-2, -1))
    return np.where(union == 0, 1.0, both / np.where(union == 0, 1, union))


def radii(cover: Array, target: Target) -> Array:
    """Radius (f,) from the covered area; NaN without an object."""
    area = cover.sum((-2, -1))
    unit = coverage(target.scenes).sum((-2, -1)).mean() / (target.scenes.radius**2).mean()
    return np.sqrt(np.where(area > 0, area, np.nan) / unit)


def angles(cover: Array, target: Target) -> Array:
    """Angle (f,) at which the true shape fits the cover best; NaN without an object.

    The shape is centred on the cover, so that a wrong position does not change the angle. If a
    symmetric shape fits at several angles, the one closest to the truth counts.
    """
    found = np.full(len(cover), np.nan)
    half = np.deg2rad(TURN_PERIODS[SHAPES[target.scenes.shape[0]]]) / 2.0
    for index, picture in enumerate(cover):
        if picture.any():
            truth = best = target.scenes.angle[index]
            reach = half
            for step in ANGLE_STEPS:
                tried = best + np.arange(-reach, reach, step)
                tried = tried[np.abs(tried - truth) <= half]
                best = tried[overlap(_turned_shapes(target, tried, picture), picture).argmax()]
                reach = 2.0 * step
            found[index] = best
    return found


def _turned_shapes(target: Target, angles: Array, place: Array) -> Array:
    """Coverage (n, h, w) of the object of frame 1, rotated and centred as ``place``."""
    turned = replace(target.scenes[:1].repeat(len(angles)), angle=angles)
    return coverage(centred(turned, centroids(place[None])))
