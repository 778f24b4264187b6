"""Do two motions act together, each by its weight? `python -m benchmarks.toy.mixing`.

Tunes two motions on the toy world, 'moves right' and 'grows', and draws unseen objects with both of
them in two ways: merged into one file (LAMP Merge Motions), and stacked on one model (Load LAMP
Motion after Load LAMP Motion), at several weights. The prompt holds the words of both motions at
all weights, the first frames and the noise are the same, so only the weights differ.

- way, growth: the share of the nominal way to the right, and of the nominal growth, that the object
  went, by least squares over the frames; medians over the objects. 0 is none, 1 is as in the clips.
- both: the share of objects with half of the one and half of the other, or more.
- seen: the share of frames that show the object.

Prints a table and, last, one line of JSON. Exit status 0 only if in both ways each motion alone
goes half of its way or more, and beside the other one at full weight the further the more its own
weight is. How far both go together is for the table to tell.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.masks import MotionMask
from lamp.method.motion import ActiveMotion, Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile
from lamp.motion_file.merge import merge_motions
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.cases import Case, Target, split_pairs
from lamp.toy.measures import centroids, object_cover, object_mask, radii
from lamp.toy.motions import MOTIONS, perform
from lamp.toy.score import trajectory_error
from lamp.toy.world import FRAMES, OBJECT_COLOURS, coverage, draw, draw_ground, sample_scenes

from .control import learned
from .motion import RECIPES, Recipe, fresh_motion

KINDS = ("moves_right", "grow")
WORDS = " ".join(MOTIONS[kind].prompt for kind in KINDS)
Weights = tuple[float, float]
WEIGHTS: tuple[Weights, ...] = (
    (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.5), (0.5, 1.0), (1.0, 1.0)
)  # fmt: skip
ACTS = 0.5  # the share that a motion alone goes at least, and that counts in `both`
STEPS = (0.0, 0.5, 1.0)


def mixed_cases(seed: int, count: int) -> list[Case]:
    """Objects of unseen combinations that do both at once: small, at the left, and with room."""
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
    return [
        ActiveMotion(motion, motion_mask=MotionMask(strengths=[weight])) for motion, weight in pairs
    ]


Way = Callable[[ToyBase, tuple[Motion, Motion], Weights], list[ActiveMotion]]
WAYS: dict[str, Way] = {"merged": merged, "stacked": stacked}


def film(
    toy: ToyBase, acting: list[ActiveMotion], cases: list[Case], recipe: Recipe, seed: int
) -> NDArray[np.uint8]:
    """Videos `n f h w 3` of the cases, which begin with the given first frames."""
    given = np.stack([case.first_frame for case in cases])
    first = toy.encode(given)
    noise = draw_noise(FRAMES, *first.shape[1:], seed=seed, videos=len(cases))
    latents = sample(
        DiffusersHost(toy.unet),
        acting[0].motion,
        first,
        share_noise(noise, recipe.alpha, FRAMES),
        toy.encode_text([f"{case.caption} {WORDS}" for case in cases]),
        steps=recipe.sample_steps,
        guidance=1.0,
        schedule=recipe.schedule,
        groupnorm=recipe.groupnorm,
        motion_mask=acting[0].motion_mask,
        others=acting[1:],
    )
    decoded: Tensor = (toy.decode(latents) * 255.0).round().to(torch.uint8)
    videos = decoded.numpy().reshape(len(cases), FRAMES, *decoded.shape[1:])
    videos[:, 0] = given
    return videos


def measure(video: NDArray[np.uint8], case: Case) -> dict[str, float]:
    """Way, growth and presence of one object; see this module's beginning."""
    (target,) = case.targets
    masks = object_mask(video, target.colour, case.ground)
    cover = object_cover(video, target.colour, case.ground)
    way = trajectory_error(centroids(masks)[:, :1], centroids(target.masks)[:, :1])[1]
    sizes = radii(cover, target)[:, None]
    growth = trajectory_error(sizes, target.scenes.radius[:, None])[1]
    return {
        "way": way,
        "growth": growth,
        "both": float(min(way, growth) >= ACTS),
        "seen": float(masks.any((1, 2)).mean()),
    }


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    take = {"way": np.median, "growth": np.median, "both": np.mean, "seen": np.mean}
    return {name: round(float(take[name](values)), 3) for name, values in columns.items()}


def passes(table: dict[str, dict[str, float]]) -> bool:
    """Each motion acts alone, and by its weight beside the other one."""
    ways = [table[label((weight, 1.0))]["way"] for weight in STEPS]
    growths = [table[label((1.0, weight))]["growth"] for weight in STEPS]
    alone = min(table[label((1.0, 0.0))]["way"], table[label((0.0, 1.0))]["growth"])
    return alone >= ACTS and all(row == sorted(set(row)) for row in (ways, growths))


def label(weights: Weights) -> str:
    return f"{weights[0]:g}, {weights[1]:g}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.toy.mixing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=8, help="unseen objects")
    parser.add_argument("--sample-steps", type=int, default=15)
    parser.add_argument(
        "--keep", type=Path, nargs=2, help="files of the two tuned motions, written once"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    toy = load_toy_base()
    first, second = (
        learned(toy, RECIPES[kind], args.seed, path, kind)
        for kind, path in zip(KINDS, args.keep or (None, None), strict=True)
    )
    # What grows cannot be held to frame 1's statistics, so that 'grow' samples without AdaIN.
    recipe = replace(RECIPES["grow"], sample_steps=args.sample_steps)
    cases = mixed_cases(args.seed, args.cases)
    print(
        f"{'':<8} {'weights':<10}"
        + "".join(f"{name:>9}" for name in ("way", "growth", "both", "seen"))
    )
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for name, way in WAYS.items():
        for weights in WEIGHTS:
            videos = film(toy, way(toy, (first, second), weights), cases, recipe, args.seed)
            pairs = zip(videos, cases, strict=True)
            row = summary([measure(video, case) for video, case in pairs])
            tables.setdefault(name, {})[label(weights)] = row
            values = "".join(f"{value:>9.2f}" for value in row.values())
            print(f"{name:<8} {label(weights):<10}{values}", flush=True)
    verdicts = {name: passes(table) for name, table in tables.items()}
    about = {"pass": all(verdicts.values()), "ways": verdicts, "cases": args.cases}
    settings = {"seed": args.seed, "recipe": asdict(recipe)}
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({**about, **settings, "mixing": tables, "seconds": seconds}))
    return 0 if about["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
