"""Was the motion learned? Measures on generated frames against the world's own truth.

Masks, positions and areas are in pixels; frame 1 is given, so everything is measured on frames
2..F. A static video must fail, whatever its picture quality, and so must an untuned model.

What shows the motion is turned into a path in pixels, so that one error serves all kinds: places
are centroids; sizes the radius that the area stands for; angles the arc at the object's radius,
by the turned shape that fits best. With size and angle goes the place, which must stay.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import LampError
from .cases import Case, Target
from .measures import angles, centroids, object_cover, object_mask, overlap, radii
from .motions import MOTIONS
from .world import coverage

GAIN = (0.7, 1.3)
MOST_ERROR = 0.35
AREA = (0.6, 1.6)
LEAST_GROUND = 20.0  # dB
LEAST_KEPT = 0.5  # share of the object's place that still shows its colour and shape


def paths(
    frames: NDArray[np.uint8], masks: NDArray[np.bool_], case: Case, target: Target
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Found and true path of one object, both (f, d) in pixels; see this module's beginning."""
    seen_in = MOTIONS[case.kind].seen_in
    if seen_in == "place":
        return centroids(masks), centroids(target.masks)
    # Sizes and angles need more than whole pixels: on masks they are off by a tenth.
    cover, scenes = object_cover(frames, target.colour, case.ground), target.scenes
    if seen_in == "size":
        found, wanted = radii(cover, target), scenes.radius
    else:
        found, wanted = scenes.radius * angles(cover, target), scenes.radius * scenes.angle
    true_place = centroids(coverage(scenes))
    return np.column_stack([found, centroids(cover)]), np.column_stack([wanted, true_place])


def trajectory_error(found: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """(nRMSE, gain) of a path (f, d) relative to frame 1, over the true displacement.

    nRMSE: root mean square distance between the paths over that of the true displacement, so a
    static video scores 1. A frame without object counts as one that never moved. Gain: the share
    of the true displacement that was covered, by least squares.
    Raises ValueError if the truth does not move.
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
    """One clip. ``kept``: how well colour and shape agree when the shift is taken out.

    Of two objects, ``iou`` is the mean, ``worst`` the lower one, and all other measures are those
    of the worse object; both must be followed.
    """

    iou: float
    worst: float
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


@dataclass(frozen=True)
class _ObjectScore:
    iou: float
    nrmse: float
    gain: float
    area: float
    kept: float

    @property
    def followed(self) -> bool:
        return (
            GAIN[0] <= self.gain <= GAIN[1]
            and self.nrmse < MOST_ERROR
            and AREA[0] <= self.area <= AREA[1]
        )


def _score_object(
    frames: NDArray[np.uint8], masks: NDArray[np.bool_], case: Case, target: Target
) -> _ObjectScore:
    nrmse, gain = trajectory_error(*paths(frames, masks, case, target))
    return _ObjectScore(
        iou=float(overlap(masks[1:], target.masks[1:]).mean()),
        nrmse=nrmse,
        gain=gain,
        area=float(masks[1:].sum() / target.masks[1:].sum()),
        kept=float(aligned_overlap(masks[1:], target.masks[1:]).mean()),
    )


def score_clip(frames: NDArray[np.uint8], case: Case) -> Score:
    """``frames`` (f, h, w, 3), the given first frame included, against the case's truth.

    Raises LampError if the frames do not have the case's number and size.
    """
    if frames.shape != case.frames.shape:
        count, height, width, _ = case.frames.shape
        raise LampError(
            f"The images are of the shape {frames.shape}: the toy object's video has {count} "
            f"frames of {width} x {height} in RGB. Give all of its frames, and no others."
        )
    parts, outside = [], np.ones(frames.shape[:3], dtype=bool)
    for target in case.targets:
        masks = object_mask(frames, target.colour, case.ground) & target.field
        parts.append(_score_object(frames, masks, case, target))
        outside &= ~(masks | target.masks)
    ground = ground_psnr(frames[1:], case.frames[1:], outside[1:])
    kept = min(part.kept for part in parts)
    return Score(
        iou=float(np.mean([part.iou for part in parts])),
        worst=min(part.iou for part in parts),
        nrmse=max(part.nrmse for part in parts),
        gain=_farthest_from_one([part.gain for part in parts]),
        area=_farthest_from_one([part.area for part in parts]),
        kept=kept,
        ground=ground,
        followed=all(part.followed for part in parts),
        appearance=kept >= LEAST_KEPT and ground >= LEAST_GROUND,
    )


def _farthest_from_one(values: list[float]) -> float:
    return max(values, key=lambda value: abs(value - 1.0))


def static_video(case: Case) -> NDArray[np.uint8]:
    """The first frame, repeated: what a model without motion would give at best."""
    return np.repeat(case.frames[:1], len(case.frames), axis=0)


def summarise(scores: list[Score]) -> dict[str, float]:
    """Means over a set, but the median of nRMSE: one lost object would rule its mean."""
    columns = {name: [asdict(score)[name] for score in scores] for name in asdict(scores[0])}
    summary = {name: round(float(np.mean(values)), 4) for name, values in columns.items()}
    summary["nrmse"] = round(float(np.median(columns["nrmse"])), 4)
    return {**summary, "cases": float(len(scores))}
