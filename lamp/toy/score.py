"""Was the motion learned? Measures on generated frames against the world's own truth.

Masks, positions and areas are in pixels; frame 1 is given, so everything is measured on frames
2..F. A static video must fail, whatever its picture quality, and so must an untuned model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from . import world

GAIN = (0.7, 1.3)
MOST_ERROR = 0.35
AREA = (0.6, 1.6)
LEAST_GROUND = 20.0  # dB
LEAST_KEPT = 0.5  # share of the object's place that still shows its colour and shape


def object_mask(
    frames: NDArray[np.uint8],
    object_colour: tuple[int, int, int],
    ground: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Pixels nearer to the object's colour than to the ground's, (..., h, w).

    ``ground`` is the true ground without the object, (h, w, 3), so a texture counts as ground. A
    third colour (a smear, a foreign object) far from both is not the object.
    """
    pixels = frames.astype(float)
    colour = np.array(object_colour, dtype=float)
    to_object = np.linalg.norm(pixels - colour, axis=-1)
    to_ground = np.linalg.norm(pixels - ground, axis=-1)
    apart = np.linalg.norm(colour - ground, axis=-1)
    return (to_object < to_ground) & (to_object < 0.6 * apart)


def centroids(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres (f, 2) as x, y; NaN where there is no object."""
    rows, columns = np.mgrid[: masks.shape[-2], : masks.shape[-1]] + 0.5
    area = masks.sum((-2, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (masks * columns).sum((-2, -1)) / area
        y = (masks * rows).sum((-2, -1)) / area
    return np.stack([x, y], axis=-1)


def overlap(masks: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Intersection over union, frame by frame; empty against empty is 1."""
    union = (masks | truth).sum((-2, -1))
    return np.where(union == 0, 1.0, (masks & truth).sum((-2, -1)) / np.maximum(union, 1))


def trajectory_error(found: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """(nRMSE, gain) of the path relative to frame 1, over the true displacement.

    nRMSE: root mean square distance between the paths over that of the true displacement, so a
    static video scores 1. A frame without object counts as one that never moved. Gain: the share
    of the true displacement that was covered, by least squares.
    """
    start = found[0] if np.isfinite(found[0]).all() else truth[0]
    moved = np.where(np.isfinite(found[1:]), found[1:] - start, 0.0)
    wanted = truth[1:] - truth[0]
    scale = float((wanted**2).sum())
    if scale == 0.0:
        raise ValueError("the true object does not move, so there is no displacement to compare")
    return (
        float(np.sqrt(((moved - wanted) ** 2).sum() / scale)),
        float((moved * wanted).sum() / scale),
    )


def ground_psnr(
    frames: NDArray[np.uint8], truth: NDArray[np.uint8], outside: NDArray[np.bool_]
) -> float:
    """Decibels over the pixels where neither truth nor result shows the object."""
    error = (frames.astype(float) - truth.astype(float))[outside]
    return float(10.0 * np.log10(255.0**2 / max(float((error**2).mean()), 1e-3)))


@dataclass(frozen=True)
class Score:
    """One clip. ``kept``: how well colour and shape agree when the shift is taken out."""

    iou: float
    nrmse: float
    gain: float
    area: float
    kept: float
    ground: float
    followed: bool
    appearance: bool


def aligned_overlap(
    masks: NDArray[np.bool_], truth: NDArray[np.bool_], reach: int = 2
) -> NDArray[np.float64]:
    """Best overlap per frame with the truth shifted to about the found place: shape, not place."""
    best = np.zeros(len(masks))
    for index, (found, wanted) in enumerate(zip(masks, truth, strict=True)):
        if not found.any() or not wanted.any():
            continue
        gap = np.rint(centroids(found[None])[0] - centroids(wanted[None])[0]).astype(int)
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                moved = _shift(wanted, gap[0] + dx, gap[1] + dy)
                best[index] = max(best[index], float(overlap(found[None], moved[None])[0]))
    return best


def _shift(mask: NDArray[np.bool_], dx: int, dy: int) -> NDArray[np.bool_]:
    """Moved without wrapping round."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    ys, xs = np.nonzero(mask)
    inside = (ys + dy >= 0) & (ys + dy < height) & (xs + dx >= 0) & (xs + dx < width)
    out[ys[inside] + dy, xs[inside] + dx] = True
    return out


def score_clip(frames: NDArray[np.uint8], case: world.Case) -> Score:
    """``frames`` (f, h, w, 3), the given first frame included, against the case's truth."""
    if frames.shape != case.frames.shape:
        raise ValueError(f"frames {frames.shape} do not fit the case {case.frames.shape}")
    masks = object_mask(frames, case.object_colour, case.ground)
    nrmse, gain = trajectory_error(centroids(masks), centroids(case.masks))
    area = float(masks[1:].sum() / case.masks[1:].sum())
    outside = ~(masks[1:] | case.masks[1:])
    kept = float(aligned_overlap(masks[1:], case.masks[1:]).mean())
    ground = ground_psnr(frames[1:], case.frames[1:], outside)
    followed = GAIN[0] <= gain <= GAIN[1] and nrmse < MOST_ERROR and AREA[0] <= area <= AREA[1]
    return Score(
        iou=float(overlap(masks[1:], case.masks[1:]).mean()),
        nrmse=nrmse,
        gain=gain,
        area=area,
        kept=kept,
        ground=ground,
        followed=followed,
        appearance=kept >= LEAST_KEPT and ground >= LEAST_GROUND,
    )


def static_video(case: world.Case) -> NDArray[np.uint8]:
    """The first frame, repeated: what a model without motion would give at best."""
    return np.repeat(case.frames[:1], len(case.frames), axis=0)


def summarise(scores: list[Score]) -> dict[str, float]:
    """Means over a set, but the median of nRMSE: one lost object would rule its mean."""
    columns = {name: [asdict(score)[name] for score in scores] for name in asdict(scores[0])}
    summary = {name: round(float(np.mean(values)), 4) for name, values in columns.items()}
    summary["nrmse"] = round(float(np.median(columns["nrmse"])), 4)
    return {**summary, "cases": float(len(scores))}
