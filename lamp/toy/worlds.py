"""Both toy worlds by the name of a motion: sprites, and scenes with the paper's eight motions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import LampError
from . import base, cases, motions, score
from . import clip as toy_clip
from .scenes import base as scenes_base
from .scenes import cases as scenes_cases
from .scenes import motions as scenes_motions
from .scenes import score as scenes_score

Case = cases.Case | scenes_cases.SceneCase
SETS = ("combination", "hard")
COUNT = 24

BASES: dict[str, Path] = {"sprites": base.PATH, "scenes": scenes_base.PATH}
CLIPS: dict[str, Path] = {"sprites": toy_clip.PATH, "scenes": scenes_base.CLIP_PATH}


def motion_names() -> list[str]:
    """The motions of both worlds."""
    return [*motions.MOTIONS, *scenes_motions.MOTIONS]


def training_clips(seed: int, motion: str, clips: int = 8) -> cases.Clips:
    """Training clips of a motion of either world.

    Raises LampError for an unknown motion, or a number of clips that its world cannot make.
    """
    if motion in motions.MOTIONS:
        return cases.training_clips(seed, motion, clips)
    return scenes_cases.training_clips(seed, motion, clips)


def evaluation_cases(seed: int, unseen: str, motion: str) -> list[Case]:
    """The 24 test cases of a motion of either world.

    Raises LampError for an unknown motion, or a set that its world does not have.
    """
    if motion in motions.MOTIONS:
        return list(cases.evaluation_cases(seed, unseen, motion, COUNT))
    if unseen != SETS[0]:
        raise LampError(
            f"unseen is '{unseen}', but the motion '{motion}' has only the set '{SETS[0]}': "
            "choose that."
        )
    return list(scenes_cases.evaluation_cases(seed, motion, COUNT))


def score_text(frames: NDArray[np.uint8], case: Case) -> tuple[float, str]:
    """Overlap (IoU) of generated frames `f h w 3` with the truth, and all measures as text.

    Raises LampError if the frames do not have the case's number and size.
    """
    if isinstance(case, cases.Case):
        found = score.score_clip(frames, case)
        error = {"place": "path", "angle": "angle", "size": "size"}[
            motions.MOTIONS[case.kind].seen_in
        ]
        overlap, followed = found.iou, found.followed
        rest = f"{error} error {found.nrmse:.2f}, background {found.ground:.1f} dB"
    else:
        scene = scenes_score.score_video(frames, case)
        overlap, followed = scene.overlap, scene.followed
        rest = ", ".join(f"{name} {value:.2f}" for name, value in scene.own.items())
    verdict = "followed" if followed else "not followed"
    return overlap, f"{case.prompt}: {verdict}, IoU {overlap:.2f}, {rest}"
