"""What the ablations (benchmarks/toy/ablations.py) measure of the sprites.

Two sets of unseen objects: overlap with the true place, path error (median, from the object's own
place in frame 1), the share followed, and

- kept: agreement of colour and shape without regard to the place; looks: the share of videos with
  kept of at least 0.5 and the true background to 20 dB;
- fidelity: the background of frames 2.. against that of the decoded frame 1, dB;
- flicker: mean change of the background from frame to frame, from frame 2 on, in bytes;
- jerk: root mean square of the second difference of the object's place, in units of the true
  displacement per frame. A still object has none.
"""

from __future__ import annotations

import numpy as np

from lamp.toy import score
from lamp.toy.cases import Case, Clips, evaluation_cases, training_clips
from lamp.toy.measures import centroids, object_mask

from .ablations import World
from .ablations_report import Claim, Measure
from .runs import SETS, Figures, Recipe, Videos, around, average

MEASURES = {
    "iou": Measure("overlap", True, high=1.0),
    "nrmse": Measure("path error", False),
    "followed": Measure("followed", True, high=1.0),
    "kept": Measure("kept", True, high=1.0),
    "looks": Measure("looks", True, high=1.0),
    "fidelity": Measure("fidelity, dB", True, 1),
    "flicker": Measure("flicker", False, 1),
    "jerk": Measure("jerk", False),
}
CLAIMS: tuple[Claim, ...] = (
    ("Without the first frame the quality is low, and contents of the clips intrude.",
     "no first frame", ("kept", "looks"), ""),
    ("Without the motion layers the motion is not captured.",
     "no motion convolutions", ("followed", "nrmse"), ""),
    ("With a plain convolution the main object becomes inconsistent.",
     "plain convolution", ("kept", "iou"), ""),
    ("Without shared noise the result lacks smoothness.", "no shared noise", ("jerk",), ""),
    ("Without AdaIN the appearance loses its consistency.", "no AdaIN", ("kept", "fidelity"), ""),
    ("Without histogram matching the frames flicker.", "no histogram matching", ("flicker",), ""),
    ("Without the motion layers the motion fails, without shared noise only its smoothness.",
     "no motion convolutions", ("followed",), "no shared noise"),
)  # fmt: skip


def clips(seed: int, kind: str, recipe: Recipe) -> Clips:
    return training_clips(seed, kind, fade=recipe.fade, pace=recipe.pace)


def cases(seed: int, which: str, kind: str, count: int, recipe: Recipe) -> list[Case]:
    return evaluation_cases(seed, which, kind, count=count, pace=recipe.pace)


def measure(videos: Videos, cases: list[Case], given: Videos) -> Figures:
    """Figures of a set; `given` are the decoded first frames."""
    pairs = list(zip(videos, cases, strict=True))
    figures = score.summarise([score.score_clip(*pair) for pair in pairs])
    rows = [steadiness(*pair, first) for pair, first in zip(pairs, given, strict=True)]
    found = {**average(rows, 4), "looks": figures["appearance"], **figures}
    return {name: found[name] for name in MEASURES}


def steadiness(video: Videos, case: Case, first: Videos) -> Figures:
    """Fidelity, flicker and jerk of one video `f h w 3` of one object."""
    (target,) = case.targets
    masks = object_mask(video, target.colour, case.ground)
    outside = ~around(masks | target.masks | target.masks[:1])
    still = np.broadcast_to(first, video.shape)
    change = np.abs(np.diff(video[1:].astype(float), axis=0))
    both = outside[2:] & outside[1:-1]
    step = np.linalg.norm(np.diff(centroids(target.masks), axis=0), axis=1).mean()
    bends = np.linalg.norm(np.diff(centroids(masks), n=2, axis=0), axis=1)
    bends = bends[np.isfinite(bends)]
    return {
        "fidelity": score.ground_psnr(video[1:], still[1:], outside[1:]),
        "flicker": float(change[both].mean()),
        "jerk": float(np.sqrt((bends**2).mean()) / step) if len(bends) else None,
    }


WORLD = World(SETS, MEASURES, CLAIMS, clips, cases, measure)
