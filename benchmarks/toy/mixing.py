"""Do two motions act together, each by its weight?

    python -m benchmarks.toy.mixing

Tunes 'moves right' and 'grows' on the toy world and generates unseen objects with both in two ways:
merged into one file (LAMP Merge Motions), and stacked on one model (two LAMP Load Motion nodes), at
several weights. Prompt, first frames and noise are the same, so only the weights differ.

- way, growth: the share of the nominal displacement, and of the nominal growth, by least squares
  over the frames; medians over the objects. 0 is none, 1 is as in the clips.
- both: the share of objects with at least half of each.
- seen: the share of frames that show the object.

Prints a table, and last one line of JSON. Exit status 0 only if, in both ways, each motion alone
reaches at least half, and beside the other one at full weight grows with its own weight.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Table, finish, parser
from lamp.method.masks import MotionMask
from lamp.method.motion import ActiveMotion, Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile
from lamp.motion_file.merge import merge_motions
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.cases import Case, Target, split_pairs
from lamp.toy.measures import centroids, object_cover, object_mask, radii
from lamp.toy.motions import MOTIONS, perform
from lamp.toy.score import trajectory_error
from lamp.toy.world import FRAMES, OBJECT_COLOURS, coverage, draw, draw_ground, sample_scenes

from .runs import RECIPES, Recipe, Sampler, Videos, fresh_motion, tune

KINDS = ("moves_right", "grow")
WORDS = " ".join(MOTIONS[kind].prompt for kind in KINDS)
COLUMNS = ("way", "growth", "both", "seen")
Weights = tuple[float, float]
WEIGHTS: tuple[Weights, ...] = (
    (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.5), (0.5, 1.0), (1.0, 1.0)
)  # fmt: skip
ACTS = 0.5  # the least share of a motion alone, and of each in `both`
STEPS = (0.0, 0.5, 1.0)


def mixed_cases(seed: int, count: int) -> list[Case]:
    """Unseen objects that do both at once: small, at the left, with room to move."""
    rng = np.random.default_rng([seed, 113])
    pairs = split_pairs(seed).combination
    scenes = sample_scenes(rng, count, pairs[np.resize(rng.permutation(len(pairs)), count)])
    right, grow = (MOTIONS[kind].parts[0] for kind in KINDS)
    scenes = replace(
        scenes,
        x=rng.uniform(*right.x, size=count),
        y=rng.uniform(*grow.y, size=count),
        radius=rng.uniform(*grow.radius, size=count),
        angle=np.zeros(count),
    )
    (grown,) = perform((scenes,), "grow")
    way = MOTIONS["moves_right"].pace * np.tile(np.arange(FRAMES), count)
    moved = replace(grown, x=grown.x + way)
    images = draw(moved)[0].reshape(count, FRAMES, *draw(scenes[:1])[0].shape[1:])
    colours, everywhere = list(OBJECT_COLOURS.values()), np.ones(images.shape[2:4], dtype=bool)
    cases = []
    for i, (caption, ground) in enumerate(zip(scenes.captions(), draw_ground(scenes), strict=True)):
        own = moved[i * FRAMES : (i + 1) * FRAMES]
        target = Target(colours[own.colour[0]], own, coverage(own) > 0.5, everywhere)
        cases.append(Case(images[i], (target,), caption, "grow", ground))
    return cases


def merged(toy: ToyBase, motions: tuple[Motion, Motion], weights: Weights) -> list[ActiveMotion]:
    """One motion file of both, as the node and `python -m lamp merge` make it."""
    family = motions[0].sites.family
    files = [MotionFile(dict(m.state_dict()), MotionConfig(family)) for m in motions]
    motion = fresh_motion(toy, 0)
    motion.load_state_dict(merge_motions(*files, weights).state)
    return [ActiveMotion(motion.requires_grad_(False))]


def stacked(toy: ToyBase, motions: tuple[Motion, Motion], weights: Weights) -> list[ActiveMotion]:
    """Both on one model, each at its strength."""
    pairs = zip(motions, weights, strict=True)
    return [ActiveMotion(motion, motion_mask=MotionMask(strengths=[w])) for motion, w in pairs]


Way = Callable[[ToyBase, tuple[Motion, Motion], Weights], list[ActiveMotion]]
WAYS: dict[str, Way] = {"merged": merged, "stacked": stacked}


def film(
    toy: ToyBase, active: list[ActiveMotion], cases: list[Case], recipe: Recipe, seed: int
) -> Videos:
    """Videos of the cases, sampled as one batch."""
    return Sampler(toy, active[0].motion, recipe, seed).videos(
        cases,
        len(cases),
        prompts=[f"{case.caption} {WORDS}" for case in cases],
        motion_mask=active[0].motion_mask,
        others=active[1:],
    )


def measure(video: Videos, case: Case) -> dict[str, float]:
    """Figures of one object; see the module's docstring."""
    (target,) = case.targets
    masks = object_mask(video, target.colour, case.ground)
    cover = object_cover(video, target.colour, case.ground)
    way = trajectory_error(centroids(masks)[:, :1], centroids(target.masks)[:, :1])[1]
    sizes = radii(cover, target)[:, None]
    growth = trajectory_error(sizes, target.scenes.radius[:, None])[1]
    both, seen = min(way, growth) >= ACTS, masks.any((1, 2)).mean()
    return {"way": way, "growth": growth, "both": float(both), "seen": float(seen)}


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    take = dict(zip(COLUMNS, (np.median, np.median, np.mean, np.mean), strict=True))
    return {
        name: round(float(how([row[name] for row in rows])), 3) for name, how in take.items()
    }  # fmt: skip


def passes(table: dict[str, dict[str, float]]) -> bool:
    """Each motion acts alone, and by its weight beside the other one."""
    ways = [table[label((weight, 1.0))]["way"] for weight in STEPS]
    growths = [table[label((1.0, weight))]["growth"] for weight in STEPS]
    alone = min(table[label((1.0, 0.0))]["way"], table[label((0.0, 1.0))]["growth"])
    return alone >= ACTS and all(row == sorted(set(row)) for row in (ways, growths))


def label(weights: Weights) -> str:
    return f"{weights[0]:g}, {weights[1]:g}"


def main() -> int:
    command = parser("toy.mixing", __doc__)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--cases", type=int, default=8, help="unseen objects")
    command.add_argument("--sample-steps", type=int, default=15)
    command.add_argument(
        "--keep", type=Path, nargs=2, help="files of the two tuned motions, written once"
    )
    args = command.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    toy = load_toy_base()
    first, second = (
        tune(toy, RECIPES[kind], args.seed, kind, path)
        for kind, path in zip(KINDS, args.keep or (None, None), strict=True)
    )
    # AdaIN would hold what grows to frame 1's statistics, so 'grow' samples without it.
    recipe = replace(RECIPES["grow"], sample_steps=args.sample_steps, motion_guidance=1.0)
    cases = mixed_cases(args.seed, args.cases)
    table = Table({"way": 8, "weights": 10}, COLUMNS, 9)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, way in WAYS.items():
        for weights in WEIGHTS:
            videos = film(toy, way(toy, (first, second), weights), cases, recipe, args.seed)
            row = summary([measure(*pair) for pair in zip(videos, cases, strict=True)])
            rows.setdefault(name, {})[label(weights)] = row
            table.row(name, label(weights), *row.values())
    verdicts = {name: passes(each) for name, each in rows.items()}
    found = {"pass": all(verdicts.values()), "ways": verdicts, "cases": args.cases}
    found |= {"seed": args.seed, "recipe": asdict(recipe), "mixing": rows}
    return finish({**found, "seconds": round(time.perf_counter() - started, 1)})


if __name__ == "__main__":
    sys.exit(main())
