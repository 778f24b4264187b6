"""Does a looping video lead from its last frame back to frame 1?

    python -m benchmarks.toy.loops --seeds 3

Tunes 'wave' on the toy world (an object that swings to and fro) and generates videos of 1, 1.25 and
2 swings, each as it is and as a loop (`Windows.loop`). Samples with motion guidance.

- jump: the object's displacement from the last frame to frame 1, relative to the largest between
  two neighbouring frames. truth: the same of the true video, which jumps after 1.25 swings.
- travel: displacement per frame relative to the true one. overlap: with the true positions.
- seen: the share of frames that show the object at 0.6 to 1.6 times its true area.
- dB: PSNR of the background against frame 1.

Prints a table, and last one line of JSON. Exit status 0 only if no loop jumps further than within
the video, and loops of whole swings move as far as they should.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Table, finish, parser
from lamp.method.windows import Windows
from lamp.toy.base import load_toy_base
from lamp.toy.cases import Case, evaluation_cases
from lamp.toy.measures import centroids, object_mask, overlap
from lamp.toy.motions import MOTIONS
from lamp.toy.score import AREA, ground_psnr
from lamp.toy.world import FRAMES

from .runs import RECIPES, Figures, Sampler, Videos, around, average, pictures, positive, tune

KIND = "wave"
SWING = round(1.0 / MOTIONS[KIND].pace)  # frames
COLUMNS = ("jump", "truth", "travel", "overlap", "seen", "dB")
OVERLAP = 2
MOST_JUMP, LEAST_TRAVEL, LEAST_SEEN, LEAST_DB = 1.0, 0.7, 0.9, 20.0


def measure(video: Videos, case: Case) -> Figures:
    """Figures of one video `f h w 3`; see the module's docstring."""
    (target,) = case.targets
    masks = object_mask(video, target.colour, case.ground)
    share = masks.sum((1, 2)) / target.masks.sum((1, 2))
    (change, seam), (true_change, true_seam) = _changes(masks), _changes(target.masks)
    still = np.repeat(video[:1], len(video), axis=0)
    return {
        "jump": _ratio(seam, np.nanmax(change)),
        "truth": _ratio(true_seam, np.nanmax(true_change)),
        "travel": _ratio(np.nanmean(change), np.nanmean(true_change)),
        "overlap": float(overlap(masks[1:], target.masks[1:]).mean()),
        "seen": float(((share > AREA[0]) & (share < AREA[1])).mean()),
        "dB": ground_psnr(video[1:], still[1:], ~around(masks[1:] | masks[0])),
    }


def _changes(masks: np.ndarray) -> tuple[np.ndarray, float]:
    """Displacement between neighbouring frames, and from the last frame to frame 1."""
    places = centroids(masks)
    changes = np.linalg.norm(np.diff(places, axis=0, append=places[:1]), axis=1)
    return changes[:-1], float(changes[-1])


def _ratio(part: float, of: float) -> float | None:
    return float(part / of) if np.isfinite(part) and of > 0 else None


def holds(figures: Figures, whole: bool) -> bool:
    """Whether a loop is seamless; one of `whole` swings has to move as far as the true video."""
    limits = {"jump": -MOST_JUMP, "seen": LEAST_SEEN, "dB": LEAST_DB}
    limits |= {"travel": LEAST_TRAVEL} if whole else {}
    return all(
        (value := figures[name]) is not None and (value if limit > 0 else -value) >= limit
        for name, limit in limits.items()
    )


def run(sampler: Sampler, seed: int, count: int, table: Table) -> dict[str, Figures]:
    """Method and number of frames -> figures, means over the cases."""
    found = {}
    for frames in (SWING, 5 * SWING // 4, 2 * SWING):
        cases = evaluation_cases(seed, "combination", KIND, count, frames=frames)
        for name in ("as it is", "loop"):
            windows = Windows(FRAMES, OVERLAP, loop=name == "loop")
            rows = []
            for case in cases:
                latents = sampler.latents([case], frames=frames, windows=windows)
                rows.append(measure(pictures(sampler.toy, latents), case))
            found[f"{frames} {name}"] = average(rows, 3)
            table.row(seed, frames, name, *found[f"{frames} {name}"].values())
    return found


def main() -> int:
    command = parser("toy.loops", __doc__)
    add = command.add_argument
    add("--seed", type=int, default=0, help="the first seed")
    add("--seeds", type=positive, default=1)
    add("--cases", type=positive, default=4, help="unseen objects")
    add("--steps", type=positive, default=RECIPES[KIND].steps, help="of tuning")
    add("--sample-steps", type=positive, default=15)
    add("--keep", type=Path, help="folder of tuned motions, each written once")
    args = command.parse_args()
    torch.set_num_threads(1)
    started, toy, found = time.perf_counter(), load_toy_base(), {}
    recipe = replace(RECIPES[KIND], steps=args.steps, sample_steps=args.sample_steps)
    table = Table({"seed": 5, "frames": 7, "method": 10}, COLUMNS, 9)
    for seed in range(args.seed, args.seed + args.seeds):
        keep = args.keep and args.keep / f"{KIND}-{args.steps}-{seed}.safetensors"
        motion = tune(toy, recipe, seed, KIND, keep)
        found[seed] = run(Sampler(toy, motion, recipe, seed), seed, args.cases, table)
    passed = all(
        holds(figures, whole=int(name.split()[0]) % SWING == 0)
        for figures_of in found.values()
        for name, figures in figures_of.items()
        if name.endswith("loop")
    )
    seconds = round(time.perf_counter() - started, 1)
    return finish({"pass": passed, "seeds": found, "seconds": seconds})


if __name__ == "__main__":
    sys.exit(main())
