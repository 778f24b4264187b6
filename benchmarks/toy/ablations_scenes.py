"""What the ablations (benchmarks/toy/ablations.py) measure of the scenes.

On unseen first frames: the motion's own measures, as in benchmarks.scenes, and

- fidelity: what does not move in frames 2.. against that of the decoded frame 1, dB;
- flicker: its mean change from frame to frame, from frame 2 on, in bytes.
"""

from __future__ import annotations

import numpy as np

from lamp.toy import score
from lamp.toy.cases import Clips
from lamp.toy.scenes.cases import SceneCase, evaluation_cases, training_clips
from lamp.toy.scenes.score import score_video, summarise

from .ablations import World
from .ablations_report import Measure
from .runs import Figures, Recipe, Videos, around


def steadiness(video: Videos, case: SceneCase, first: Videos) -> dict[str, float]:
    """Fidelity (dB) and flicker (bytes) where nothing moves in the true video `f h w 3`; see
    ablations_sprites.py."""
    outside = ~around(case.covers.max(0, keepdims=True) > 0)
    outside = np.repeat(outside, len(video) - 1, axis=0)
    still = np.broadcast_to(first, video.shape)
    change = np.abs(np.diff(video[1:].astype(float), axis=0))
    return {
        "fidelity": score.ground_psnr(video[1:], still[1:], outside),
        "flicker": float(change[outside[1:]].mean()),
    }


def measure(videos: Videos, cases: list[SceneCase], given: Videos) -> Figures:
    """Figures of the ablations."""
    pairs = zip(videos, cases, given, strict=True)
    rows = [steadiness(video, case, first) for video, case, first in pairs]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    found = summarise([score_video(*pair) for pair in zip(videos, cases, strict=True)]) | means
    return {name: found[name] for name in WORLD.measures}


def clips(seed: int, kind: str, recipe: Recipe) -> Clips:
    return training_clips(seed, kind)


def cases(seed: int, which: str, kind: str, count: int, recipe: Recipe) -> list[SceneCase]:
    return evaluation_cases(seed, kind, count)


WORLD = World(
    sets=("unseen",),
    measures={
        "motion": Measure("motion", True, high=1.0),
        "followed": Measure("followed", True, high=1.0),
        "overlap": Measure("overlap", True, high=1.0),
        "change": Measure("change", True, high=1.0),
        "fidelity": Measure("fidelity, dB", True, 1),
        "flicker": Measure("flicker", False, 1),
    },
    # A generated first frame is another landscape, so nothing here compares it with the truth.
    claims=(
        ("Without the motion layers the motion is not captured.",
         "no motion convolutions", ("motion", "followed"), ""),
        ("With a plain convolution the main object becomes inconsistent.",
         "plain convolution", ("motion", "overlap"), ""),
        ("Without shared noise the result lacks smoothness.",
         "no shared noise", ("flicker",), ""),
        ("Without AdaIN the appearance loses its consistency.", "no AdaIN", ("fidelity",), ""),
        ("Without histogram matching the frames flicker.",
         "no histogram matching", ("flicker",), ""),
    ),
    clips=clips,
    cases=cases,
    measure=measure,
)  # fmt: skip
