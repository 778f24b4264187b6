"""Scores of generated frames against the ground truth: was the motion learned?

Masks, positions and areas are in pixels. Frame 1 is given, so frames 2..f are measured. A static
video and an untrained model must fail, whatever their picture quality.

Every motion is converted to a path in pixels, so that one error serves all: positions are
centroids, sizes radii from the area, and angles the arc at the object's radius for the best fitting
rotation. For sizes and angles the path includes the position, which must not change.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import LampError
from .cases import SPEEDS, Case, Target
from .measures import angles, centroids, object_cover, object_mask, overlap, radii
from .motions import MOTIONS
from .world import coverage

GAIN = (0.7, 1.3)
MOST_ERROR = 0.35
AREA = (0.6, 1.6)
LEAST_GROUND = 20.0  # dB
LEAST_KEPT = 0.5  # share of the object's area that still has its colour and shape


def found_path(
    frames: NDArray[np.uint8], masks: NDArray[np.bool_], case: Case, target: Target
) -> NDArray[np.float64]:
    """Measured path (f, d) of one object in pixels; see the module's docstring."""
    seen_in = MOTIONS[case.kind].seen_in
    if seen_in == "place":
        return centroids(masks)
    # Sizes and angles need subpixel coverage: with masks they are off by a tenth.
    cover, scenes = object_cover(frames, target.colour, case.ground), target.scenes
    found = radii(cover, target) if seen_in == "size" else scenes.radius * angles(cover, target)
    return np.column_stack([found, centroids(cover)])


def true_path(case: Case, target: Target) -> NDArray[np.float64]:
    """Its true path."""
    seen_in, scenes = MOTIONS[case.kind].seen_in, target.scenes
    if seen_in == "place":
        return centroids(target.masks)
    wanted = scenes.radius if seen_in == "size" else scenes.radius * scenes.angle
    return np.column_stack([wanted, centroids(coverage(scenes))])


def trajectory_error(found: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """(nRMSE, gain) of a path (f, d) relative to frame 1, over the true displacement.

    nRMSE: RMS distance between the paths divided by the RMS of the true displacement; a static
    video scores 1. A frame without object counts as unmoved. Gain: least-squares share of the true
    displacement.
    Raises ValueError if the truth does not move.
    """
    start = found[0] if np.isfinite(found[0]).all() else truth[0]
    moved = np.where(np.isfinite(found[1:]), found[1:] - start, 0.0)
    wanted = truth[1:] - truth[0]
    scale = float((wanted**2).sum())
    if scale == 0.0:
        raise ValueError("the true object does not move: there is no displacement to compare with")
    return (
        float(np.sqrt(((moved - wanted) ** 2).sum() / scale)),
        float((moved * wanted).sum() / scale),
    )


def ground_psnr(
    frames: NDArray[np.uint8], truth: NDArray[np.uint8], outside: NDArray[np.bool_]
) -> float:
    """PSNR over the pixels in which neither truth nor result has the object."""
    error = (frames.astype(float) - truth.astype(float))[outside]
    return float(10.0 * np.log10(255.0**2 / max(float((error**2).mean()), 1e-3)))


@dataclass(frozen=True)
class Score:
    """Score of one clip. ``kept``: agreement of colour and shape without the shift.

    ``paced``: followed at a speed that a clip can have. The clips' speeds differ, and nothing tells
    which one the video should have, but all other values compare with the mean speed.

    With two objects, ``iou`` is the mean, ``worst`` the lower value, and all other values are those
    of the worse object; ``followed`` requires both.
    """

    iou: float
    worst: float
    nrmse: float
    gain: float
    area: float
    kept: float
    ground: float
    followed: bool
    paced: bool
    appearance: bool


def aligned_overlap(
    masks: NDArray[np.bool_], truth: NDArray[np.bool_], reach: int = 2
) -> NDArray[np.float64]:
    """Best overlap per frame with the truth shifted to about the measured position."""
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
    """Shift without wrapping around."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    ys, xs = np.nonzero(mask)
    inside = (ys + dy >= 0) & (ys + dy < height) & (xs + dx >= 0) & (xs + dx < width)
    out[ys[inside] + dy, xs[inside] + dx] = True
    return out


@dataclass(frozen=True)
class _PathScore:
    nrmse: float
    gain: float
    area: float

    @property
    def followed(self) -> bool:
        return (
            GAIN[0] <= self.gain <= GAIN[1]
            and self.nrmse < MOST_ERROR
            and AREA[0] <= self.area <= AREA[1]
        )


def _score_path(
    found: NDArray[np.float64], masks: NDArray[np.bool_], case: Case, target: Target
) -> _PathScore:
    nrmse, gain = trajectory_error(found, true_path(case, target))
    return _PathScore(nrmse, gain, float(masks[1:].sum() / target.masks[1:].sum()))


def _follows_at_a_clips_speed(
    found: list[NDArray[np.float64]], masks: list[NDArray[np.bool_]], case: Case
) -> bool:
    """``found`` and ``masks``: path (f, d) and masks (f, h, w) of each object."""
    return any(
        all(
            _score_path(path, seen, case, target).followed
            for path, seen, target in zip(found, masks, case.at_speed(float(speed)), strict=True)
        )
        for speed in np.linspace(*SPEEDS, 9)
    )


def score_clip(frames: NDArray[np.uint8], case: Case) -> Score:
    """``frames`` (f, h, w, 3), the given first frame included, against the case's truth.

    Raises LampError if the frames do not have the case's number and size.
    """
    if frames.shape != case.frames.shape:
        count, height, width, _ = case.frames.shape
        raise LampError(
            f"The images have shape {frames.shape}, but the toy object's video has {count} frames "
            f"of {width} x {height} in RGB: connect all of its frames and no others."
        )
    masks = [
        object_mask(frames, target.colour, case.ground) & target.field for target in case.targets
    ]
    pairs = list(zip(masks, case.targets, strict=True))
    found = [found_path(frames, seen, case, target) for seen, target in pairs]
    moved = [
        _score_path(path, seen, case, target)
        for path, (seen, target) in zip(found, pairs, strict=True)
    ]
    overlaps = [float(overlap(seen[1:], target.masks[1:]).mean()) for seen, target in pairs]
    kept = min(float(aligned_overlap(seen[1:], t.masks[1:]).mean()) for seen, t in pairs)
    objects = np.any([seen | target.masks for seen, target in pairs], axis=0)
    ground = ground_psnr(frames[1:], case.frames[1:], ~objects[1:])
    return Score(
        iou=float(np.mean(overlaps)),
        worst=min(overlaps),
        nrmse=max(path.nrmse for path in moved),
        gain=_farthest_from_one([path.gain for path in moved]),
        area=_farthest_from_one([path.area for path in moved]),
        kept=kept,
        ground=ground,
        followed=all(path.followed for path in moved),
        paced=_follows_at_a_clips_speed(found, masks, case),
        appearance=kept >= LEAST_KEPT and ground >= LEAST_GROUND,
    )


def _farthest_from_one(values: list[float]) -> float:
    return max(values, key=lambda value: abs(value - 1.0))


def static_video(case: Case) -> NDArray[np.uint8]:
    """The repeated first frame: the best result without motion."""
    return np.repeat(case.frames[:1], len(case.frames), axis=0)


def summarise(scores: list[Score]) -> dict[str, float]:
    """Means over a set; the median for nRMSE, because one lost object would dominate its mean."""
    columns = {name: [asdict(score)[name] for score in scores] for name in asdict(scores[0])}
    summary = {name: round(float(np.mean(values)), 4) for name, values in columns.items()}
    summary["nrmse"] = round(float(np.median(columns["nrmse"])), 4)
    return {**summary, "cases": float(len(scores))}
