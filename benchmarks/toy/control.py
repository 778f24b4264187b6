"""How well does a motion hold in videos much longer than its clips?

    python -m benchmarks.control

Tunes 'wave' on the toy world (an object that swings to and fro, so it never leaves the picture), at
a pace at which a clip ends where it began: an extension repeats the clip's motion from its last
frame, and would otherwise carry the object away, however well it was learned. Generates long videos
of unseen objects: all frames at once, in anchored windows, and extended clip
by clip, with AdaIN, with held colours only, and with neither. Samples with motion guidance.

- jump: the object's displacement across a seam, relative to its displacement elsewhere. Seams of
  windows are their overlaps. truth: the same of the true video; an equal jump is seamless.
- travel: displacement per frame relative to the true one. seen: the share of frames that show the
  object at 0.6 to 1.6 times its true area.
- dB: PSNR of the background against frame 1, over time.
- rows: the most frames in one call of the UNet.

Prints a table, and last one line of JSON. Exit status 0 only if windows and held extension reach
their marks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.report import Table, finish, parser
from lamp.method.extend import extend
from lamp.method.windows import Windows
from lamp.toy.base import load_toy_base
from lamp.toy.cases import Case, evaluation_cases
from lamp.toy.measures import centroids, object_mask
from lamp.toy.motions import MOTIONS
from lamp.toy.score import AREA, ground_psnr
from lamp.toy.world import FRAMES

from .runs import (
    MOTION_GUIDANCE,
    RECIPES,
    Figures,
    Sampler,
    Videos,
    around,
    average,
    pictures,
    tune,
)

KIND = "wave"
PACE = 1.0 / (MOTIONS[KIND].pace * (FRAMES - 1))  # one swing from the first frame to the last
COLUMNS = ("jump", "truth", "travel", "seen")
Seams = list[int]  # i: between frames i and i + 1, from 0
Method = Callable[[Sampler, Case, Tensor, int], tuple[Tensor, Seams]]


def at_once(sampler: Sampler, case: Case, first: Tensor, frames: int) -> tuple[Tensor, Seams]:
    return sampler.latents([case], first, frames), []


def in_windows(overlap: int) -> Method:
    windows = Windows(FRAMES, overlap)

    def draw(sampler: Sampler, case: Case, first: Tensor, frames: int) -> tuple[Tensor, Seams]:
        places = windows.frame_indices(frames)
        pairs = zip(places, places[1:], strict=False)
        seams = {i for one, other in pairs for i in range(other[1] - 1, one[-1] + 1)}
        return sampler.latents([case], first, frames, windows=windows), sorted(seams)

    return draw


def extended(hold: float, adain: bool = True) -> Method:
    def draw(sampler: Sampler, case: Case, first: Tensor, frames: int) -> tuple[Tensor, Seams]:
        if not adain:
            sampler = replace(sampler, recipe=replace(sampler.recipe, adain="off"))

        def piece(start: Tensor, number: int) -> Tensor:
            other = replace(sampler, seed=sampler.seed + number + 1)
            return other.latents([case], start, FRAMES)

        clip = sampler.latents([case], first, FRAMES)
        times = -(-(frames - FRAMES) // (FRAMES - 1))
        video = extend(clip, piece, times, hold) if times else clip
        return video[:frames], list(range(FRAMES - 1, frames - 1, FRAMES - 1))

    return draw


METHODS: dict[str, Method] = {
    "at once": at_once,
    "windows": in_windows(2),
    "extended": extended(1.0),
    # AdaIN gives every frame the statistics of frame 1 anyway, with or without held colours.
    "extended, no AdaIN": extended(1.0, adain=False),
    "extended, nothing held": extended(0.0, adain=False),
}

# Far from failures: an object that is lost or leaps at a seam, a background that washes out. The
# true video may exceed the limit on jumps itself, if seams fall on fast steps.
HELD = ("windows", "extended")
MOST_JUMP, LEAST_SEEN, LEAST_DB = 1.5, 0.9, 20.0


def holds(figures: Figures) -> bool:
    """Whether the motion holds to the end, with at most a clip's frames in one call."""
    jump, truth = figures["jump"], figures["truth"]
    decibels = [value for name, value in figures.items() if name.startswith("dB")]
    return (
        jump is not None
        and truth is not None
        and jump <= max(MOST_JUMP, truth)
        and (figures["seen"] or 0.0) >= LEAST_SEEN
        and figures["rows"] == FRAMES
        and all(value is not None and value >= LEAST_DB for value in decibels)
    )


def measure(video: Videos, case: Case, seams: Seams) -> Figures:
    """Figures of one video `f h w 3`; see the module's docstring."""
    (target,) = case.targets
    masks = object_mask(video, target.colour, case.ground)
    share = masks.sum((1, 2)) / target.masks.sum((1, 2))
    change, true_change = (
        np.linalg.norm(np.diff(centroids(m), axis=0), axis=1) for m in (masks, target.masks)
    )
    figures: Figures = {
        "jump": _ratio(change[seams], np.delete(change, seams)),
        "truth": _ratio(true_change[seams], np.delete(true_change, seams)),
        "travel": _ratio(change, true_change),
        "seen": float(((share > AREA[0]) & (share < AREA[1])).mean()),
    }
    for start, end in periods(len(video)):
        outside = ~around(masks[start:end] | masks[0])
        still = np.repeat(video[:1], end - start, axis=0)
        figures[drift_name(start, end)] = ground_psnr(video[start:end], still, outside)
    return figures


def periods(frames: int) -> list[tuple[int, int]]:
    """Frames 2 to 8, 9 to 16, 17 to 32, ... as half-open ranges from 0."""
    ends = [end for end in (FRAMES * 2**i for i in range(10)) if end < frames] + [frames]
    return list(zip([1, *ends[:-1]], ends, strict=True))


def drift_name(start: int, end: int) -> str:
    return f"dB {start + 1}-{end}"


def _ratio(part: NDArray[np.float64], of: NDArray[np.float64]) -> float | None:
    """Ratio of the means of finite values, None if one has none."""
    part, of = part[np.isfinite(part)], of[np.isfinite(of)]
    return float(part.mean() / of.mean()) if len(part) and len(of) else None


def compare(sampler: Sampler, cases: list[Case], frames: int) -> dict[str, Figures]:
    """Method -> figures, means over the cases."""
    heads = [*COLUMNS, *(drift_name(*period) for period in periods(frames)), "rows"]
    table, found = Table({"method": 24}, heads, 11), {}
    for name, method in METHODS.items():
        rows, seen = [], []
        note = sampler.toy.unet.register_forward_pre_hook(
            lambda _, x, seen=seen: seen.append(len(x[0]))
        )
        for case in cases:
            first = sampler.toy.encode(case.first_frame[None])
            latents, seams = method(sampler, case, first, frames)
            rows.append(measure(pictures(sampler.toy, latents), case, seams))
        note.remove()
        found[name] = average(rows, 3) | {"rows": float(max(seen))}
        table.row(name, *found[name].values())
    return found


def main() -> int:
    command = parser("control", __doc__)
    command.add_argument("--frames", type=int, default=64)
    command.add_argument("--cases", type=int, default=2, help="unseen objects")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--steps", type=int, default=250, help="tuning steps")
    command.add_argument("--sample-steps", type=int, default=15)
    command.add_argument("--motion-guidance", type=float, default=MOTION_GUIDANCE, help="1 is off")
    command.add_argument("--keep", type=Path, help="file of the tuned motion, written once")
    args = command.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    toy = load_toy_base()
    recipe = replace(
        RECIPES[KIND],
        steps=args.steps,
        sample_steps=args.sample_steps,
        motion_guidance=args.motion_guidance,
        pace=PACE,
    )
    motion = tune(toy, recipe, args.seed, KIND, args.keep)
    cases = evaluation_cases(
        args.seed, "combination", KIND, args.cases, frames=args.frames, pace=PACE
    )
    figures = compare(Sampler(toy, motion, recipe, args.seed), cases, args.frames)
    found = {"pass": all(holds(figures[name]) for name in HELD), "frames": args.frames}
    found |= {"cases": args.cases, "seed": args.seed, "long": figures}
    return finish({**found, "seconds": round(time.perf_counter() - started, 1)})


if __name__ == "__main__":
    sys.exit(main())
