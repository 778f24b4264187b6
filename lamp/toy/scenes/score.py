"""Scores of generated frames against the truth, each motion by the measures that show it.

Every figure is about 1 for the true video and 0 for a still one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import LampError
from . import measures
from .cases import SceneCase
from .drawing import draw_all
from .motions import MOTIONS, perform

# The measures of each motion; its score is the lowest.
MEASURES: dict[str, tuple[str, ...]] = {
    "helicopter": ("place",),
    "waterfall": ("flow",),
    "rain": ("flow", "particles"),
    "firework": ("pose", "particles"),
    "horse": ("place", "pose", "period"),
    "birds": ("place", "pose", "period"),
    "smile": ("pose",),
    "guitar": ("pose", "period"),
}
FOLLOWED = 0.5


@dataclass(frozen=True)
class SceneScore:
    """Score of one video.

    Attributes:
        overlap: intersection over union of what moves, frames 2 to the last.
        change: share of the true change of the pixels; a still video has 0.
        own: the motion's own measures by name.
    """

    overlap: float
    change: float
    own: dict[str, float]

    @property
    def motion(self) -> float:
        return min(self.own.values())

    @property
    def followed(self) -> bool:
        return self.motion >= FOLLOWED


def changed_share(frames: NDArray[np.uint8], case: SceneCase) -> float:
    """1 - squared error over that of the repeated first frame; 0 for anything worse.

    Where something moves in any frame.
    """
    region = case.covers.max(0) > 0.05
    found, truth = (video[:, region].astype(float) for video in (frames, case.frames))
    error, still = (np.square(video - truth[1:]).sum() for video in (found[1:], truth[:1]))
    return max(0.0, 1.0 - float(error / still))


def score_video(frames: NDArray[np.uint8], case: SceneCase) -> SceneScore:
    """``frames`` (f, h, w, 3), the given first frame included.

    Raises LampError if the frames do not have the case's number and size.
    """
    if frames.shape != case.frames.shape:
        raise LampError(
            f"The images have shape {frames.shape}, but the video of '{case.caption}' has shape "
            f"{case.frames.shape}: give all of its frames and no others."
        )
    masks, true_masks = (measures.moving_masks(video, case) for video in (frames, case.frames))
    names, own = MEASURES[case.kind], dict[str, float]()
    if "place" in names or "pose" in names:
        places, poses = measures.fitted(frames, case)
        true_places = np.array([(scene.x, scene.y) for scene in case.scenes])
        true_poses = np.stack([measures.POSES[case.kind](scene) for scene in case.scenes])
        found = {
            "place": measures.followed_share(places, true_places),
            "pose": measures.followed_share(poses, true_poses),
            "period": measures.period_share(poses, true_poses),
        }
        own |= {name: found[name] for name in names if name in found}
    if "flow" in names:
        own["flow"] = measures.flow_share(frames, case)
    if "particles" in names:
        own["particles"] = measures.particle_share(frames, case)
    shared = float(measures.overlap(masks[1:], true_masks[1:]).mean())
    return SceneScore(shared, changed_share(frames, case), own)


def summarise(scores: list[SceneScore]) -> dict[str, float]:
    """Means over the videos of one motion."""
    rows = [
        {"motion": one.motion, "followed": float(one.followed), "overlap": one.overlap}
        | {"change": one.change, **one.own}
        for one in scores
    ]
    return {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0]}


def still_video(case: SceneCase) -> NDArray[np.uint8]:
    """The repeated first frame."""
    return np.repeat(case.frames[:1], len(case.frames), axis=0)


def wrong_video(case: SceneCase) -> NDArray[np.uint8]:
    """Another motion from the same first frame.

    Backwards; guitars at more than twice the speed, as a strum back is a strum as well; a firework
    or a face slides to the right.
    """
    frames = len(case.frames)
    if MOTIONS[case.kind].once:
        return np.stack([np.roll(case.first_frame, 2 * i, axis=1) for i in range(frames)])
    speed = 2.3 if case.kind == "guitar" else -1.0
    return draw_all(perform(case.scenes[0], frames, speed))[0]
