"""Measures of the eight motions in generated frames: place, pose, flow, particles, period.

Every measure is 1 for the truth and 0 for a still video. Poses are measured by synthesis: the pose
whose drawing fits a frame best. Lengths are in pixels. Places and poses are compared in blurred
pictures, so that the softness of a VAE does not count as another motion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from . import figures, nature
from .cases import SceneCase
from .drawing import draw
from .motions import MOTIONS
from .scene import Scene

Array = NDArray[np.float64]
Frames = NDArray[np.uint8]
Pictures = NDArray[np.float32]
Masks = NDArray[np.bool_]

BLUR = 1.0  # standard deviation
DIFFERENT = 25.0  # RGB distance from the backdrop above which a pixel is part of what moves
SPARK = 2  # radius of a spark
PHASES = 24  # tried poses
REACH = 3  # tried shifts around the centre of what moves
TAU = 2.0 * np.pi


# --- what moves ------------------------------------------------------------------------------


def blurred(pictures: Frames) -> Pictures:
    """Pictures (..., h, w, 3) without details finer than about two pixels."""
    import cv2

    flat = pictures.reshape(-1, *pictures.shape[-3:]).astype(np.float32)
    soft = [cv2.GaussianBlur(picture, (0, 0), BLUR) for picture in flat]
    return np.stack(soft).reshape(pictures.shape)


def moving_masks(frames: Frames, case: SceneCase) -> Masks:
    """Pixels (f, h, w) that differ from the backdrop."""
    gap = blurred(frames) - blurred(case.backdrop)
    return np.linalg.norm(gap, axis=-1) > DIFFERENT


def overlap(one: Masks, other: Masks) -> Array:
    """Intersection over union per frame; 1 if both are empty."""
    union = (one | other).sum((-2, -1))
    return np.where(union == 0, 1.0, (one & other).sum((-2, -1)) / np.maximum(union, 1))


def centres(masks: Masks) -> Array:
    """Centres (f, 2) as x, y of masks; of an empty one, the middle of the picture."""
    rows, columns = np.mgrid[: masks.shape[-2], : masks.shape[-1]] + 0.5
    area = masks.sum((-2, -1))
    middle = np.array([masks.shape[-1], masks.shape[-2]]) / 2.0
    found = np.stack([(masks * columns).sum((-2, -1)), (masks * rows).sum((-2, -1))], axis=-1)
    return np.where(area[:, None] > 0, found / np.maximum(area, 1)[:, None], middle)


def followed_share(found: Array, truth: Array) -> float:
    """1 - RMS error of a path (f, d) relative to frame 1, over the RMS of the true change.

    1 for the true path, 0 for a still one and for any that is farther off.
    """
    moved, wanted = found - found[:1], truth - truth[:1]
    scale = float(np.square(wanted).sum())
    error = float(np.square(moved - wanted).sum())
    return max(0.0, 1.0 - float(np.sqrt(error / scale))) if scale else 0.0


# --- pose ------------------------------------------------------------------------------------


def _wings(scene: Scene) -> Array:
    return nature.birds(scene)[1]


def _spread(scene: Scene) -> Array:
    heads = nature.sparks(scene)
    return np.linalg.norm(heads - heads.mean(0), axis=1).mean(keepdims=True)


# What the pose of a scene is: a vector that two phases share only if their pictures look alike.
POSES: dict[str, Callable[[Scene], Array]] = {
    "helicopter": lambda scene: np.abs(np.cos([TAU * scene.phase])),
    "firework": _spread,
    "horse": lambda scene: figures.leg_angles(scene.phase).reshape(-1),
    "birds": _wings,
    "smile": lambda scene: np.array([scene.phase]),
    "guitar": lambda scene: np.array([figures.strum_angle(scene.phase)]),
}


def fitted(frames: Frames, case: SceneCase) -> tuple[Array, Array]:
    """Places (f, 2) relative to frame 1, and poses (f, d), whose drawings fit the frames best.

    The drawing of each pose is laid over the backdrop: around the centre of what moves if the
    motion travels, else at the true place. In a motion that happens once, a frame that no pose
    explains counts as the pose of frame 1.
    """
    first, motion = case.scenes[0], MOTIONS[case.kind]
    phases = np.linspace(0.0, 1.0, PHASES, endpoint=motion.once)
    tried = [replace(first, phase=float(phase)) for phase in phases]
    drawn = np.stack([draw(scene)[0] for scene in tried])
    solid = moving_masks(drawn, case)
    pictures, backdrop = blurred(drawn), blurred(case.backdrop)
    still = motion.velocity == (0.0, 0.0)
    near = np.arange(-REACH, REACH + 1) if not still else np.zeros(1, int)
    shifts = np.zeros((len(frames), 2), int)
    if not still:
        shifts = np.rint(centres(moving_masks(frames, case)) - centres(solid).mean(0)).astype(int)
    places, poses = [], []
    for frame, (x, y) in zip(blurred(frames), shifts, strict=True):
        tries = [(int(x + dx), int(y + dy)) for dx in near for dy in near]
        fits = [(*_fit(frame, pictures, solid, backdrop, place), place) for place in tries]
        _, index, place = min(fits)
        places.append(place)
        known = not motion.once or _explains(pictures[index], frame, pictures[[0, -1]], solid)
        poses.append(POSES[case.kind](tried[index] if known else first))
    return np.array(places, float), np.stack(poses)


def _fit(
    frame: Pictures,
    pictures: Pictures,
    solid: Masks,
    backdrop: Pictures,
    place: tuple[int, int],
) -> tuple[float, int]:
    """Least squared error, and which of the pictures has it when it is laid over the backdrop."""
    turned = place[::-1]
    laid = np.where(
        np.roll(solid, turned, (1, 2))[..., None], np.roll(pictures, turned, (1, 2)), backdrop
    )
    errors = np.square(laid - frame).sum((1, 2, 3))
    return float(errors.min()), int(errors.argmin())


def _explains(best: Pictures, frame: Pictures, ends: Pictures, solid: Masks) -> bool:
    """Whether a drawing is closer to a frame, where anything moves, than the first and the last
    pose are to each other."""
    where = solid.any(0)
    error, span = (np.square((a - b)[where]).sum() for a, b in ((best, frame), ends))
    return bool(error <= span)


def period_share(found: Array, truth: Array) -> float:
    """1 - relative error of the strongest frequency of a pose (f, d); 0 if nothing changes."""
    if not np.square(found - found.mean(0)).sum() > 1e-6:
        return 0.0
    wanted = _strongest(truth)
    return max(0.0, 1.0 - abs(_strongest(found) - wanted) / wanted)


def _strongest(values: Array) -> float:
    rates = np.linspace(0.06, 0.5, 89)  # cycles per frame
    waves = np.exp(-1j * TAU * rates[:, None] * np.arange(len(values)))
    power = np.square(np.abs(waves @ (values - values.mean(0)))).sum(1)
    return float(rates[power.argmax()])


# --- flow ------------------------------------------------------------------------------------


def flows(frames: Frames) -> Array:
    """Dense flow (f - 1, h, w, 2) in pixels per frame, by Farneback's method."""
    import cv2

    gray = [
        cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None, fx=2, fy=2) for frame in frames
    ]
    pairs = zip(gray, gray[1:], strict=False)
    found = [
        cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 2, 13, 5, 7, 1.5, 0) / 2.0  # type: ignore[call-overload]
        for a, b in pairs
    ]
    return np.stack(found)[:, ::2, ::2].astype(float)


def flow_share(frames: Frames, case: SceneCase) -> float:
    """Agreement in direction and speed of the mean flow of what moves, with the truth's."""
    weight = case.covers[:-1, ..., None]
    found, wanted = (
        (flows(video) * weight).sum((1, 2)) / weight.sum((1, 2)) for video in (frames, case.frames)
    )
    scale = float(np.square(wanted).sum())
    error = float(np.square(found - wanted).sum())
    return max(0.0, 1.0 - float(np.sqrt(error / scale)))


# --- particles -------------------------------------------------------------------------------


def near_share(one: Masks, other: Masks, reach: int) -> float:
    """F1 score of two masks (f, h, w): pixels match within `reach`; 1 if they agree."""
    found = (_share_near(one, other, reach), _share_near(other, one, reach))
    return 2.0 * found[0] * found[1] / max(sum(found), 1e-9)


def _share_near(one: Masks, other: Masks, reach: int) -> float:
    import cv2

    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    wide = np.stack([cv2.dilate(mask.astype(np.uint8), square) for mask in other]).astype(bool)
    return float((one & wide).sum() / max(1, one.sum()))


def particle_share(frames: Frames, case: SceneCase) -> float:
    """Share of the particles that are where they should be. The share that a still video has by
    chance is subtracted, and that of the truth is 1.

    Sparks are compared with the true ones, frames 2 to the last; drops with themselves, one frame
    earlier, because nobody can know where new ones begin.
    """
    masks, truth = moving_masks(frames, case), moving_masks(case.frames, case)
    still = np.repeat(truth[:1], len(frames), 0)
    if case.kind == "rain":
        shares = [_fallen_share(one, case) for one in (masks, truth, still)]
    else:
        shares = [near_share(one[1:], truth[1:], SPARK) for one in (masks, truth, still)]
    found, most, chance = shares
    return float(np.clip((found - chance) / (most - chance), 0.0, 1.0))


def _fallen_share(masks: Masks, case: SceneCase) -> float:
    fall = case.scenes[1].phase - case.scenes[0].phase
    down, across = round(fall), round(-nature.RAIN_SLANT * fall)
    moved = np.roll(masks[:-1], (down, across), (1, 2))
    inside = np.arange(masks.shape[1])[:, None] >= down
    return near_share(moved & inside, masks[1:] & inside, 1)
