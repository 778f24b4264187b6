"""The paper's Table 1, run on a toy world: LAMP and three baselines on the same clips.

    python -m benchmarks.table1 --seeds 3 --keep build/table1/run --save-plot table1.svg
    python -m benchmarks.table1 --motions moves_right --steps 60 --cases 4

The methods (see their modules): Tune-A-Video on one clip, Text2Video-Zero without training,
AnimateDiff-style modules on the clips (*), LAMP, and LAMP with motion guidance. All trained methods
take the same number of steps. LAMP and Text2Video-Zero get the same first frame; Tune-A-Video and
AnimateDiff generate theirs from the prompt, so their objects start elsewhere. Two controls: the
repeated first frame, and the true videos.

Measures: the paper's three (section 4.2; lamp.metrics), with a small CLIP of the world: text
alignment, frame consistency and diversity (lower is better) of each motion's videos. A still video
has the highest consistency there is. Beside them the world's own, from its known truth. Of the
sprites: overlap with the true place (only meaningful with the given first frame), path error, share
followed, and kept (agreement of colour and shape regardless of the place).

Prints a table with mean and deviation over the seeds, whether the paper's order comes out, and last
one line of JSON. With `--keep` finished work is stored in a folder, and a stopped run resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import parser
from benchmarks.toy.ablations import Kept
from benchmarks.toy.runs import Figures, Recipe, Videos, average, positive
from lamp.metrics import diversity, frame_consistency, text_alignment
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.clip import ToyClip, load_toy_clip

from .methods import METHODS, Job
from .report import MEAN, PAPER, means, orders, plot, table
from .worlds import WORLDS, World

GUIDANCE = 1.0  # none, as in LAMP's recipes on the toy base


def measure(world: World, clip: ToyClip, videos: Videos, cases: Sequence[Any]) -> Figures:
    """The paper's measures and the world's of the videos of one motion."""
    seen = [clip.encode_image(torch.from_numpy(video) / 255.0) for video in videos]
    read = [clip.encode_text(case.prompt) for case in cases]
    pairs = zip(seen, read, strict=True)
    return {
        "alignment": float(np.mean([text_alignment(frames, text) for frames, text in pairs])),
        "consistency": float(np.mean([frame_consistency(frames) for frames in seen])),
        "diversity": diversity(seen) if len(seen) > 1 else None,
        **world.truth(videos, cases),
    }


def runs(
    world: World,
    toy: ToyBase,
    clip: ToyClip,
    recipes: dict[str, Recipe],
    args: argparse.Namespace,
    kept: Kept,
) -> Iterator[tuple[str, str, int, Figures]]:
    """Method, motion, seed and figures, stored ones included."""
    for seed in range(args.seed, args.seed + args.seeds):
        for kind, recipe in recipes.items():
            job = Job(world, toy, kind, seed, recipe, args.guidance)
            for name in args.methods:
                key = f"{name}, {kind}, {seed}"
                if key not in kept.results:
                    kept.add(key, one_run(job, name, clip, args.cases, kept))
                yield name, kind, seed, kept.results[key]


def one_run(job: Job, name: str, clip: ToyClip, count: int, kept: Kept) -> dict[str, Any]:
    """Figures of one method, motion and seed."""
    method, started, layers = METHODS[name], time.perf_counter(), None
    if method.fresh is not None and method.learn is not None:
        file = f"{method.learned}-{job.kind}-{job.seed}"
        learn = method.learn
        layers = kept.motion(file, method.fresh(job), lambda: learn(job))
    tuned = time.perf_counter()
    cases = job.world.cases(job.seed, job.kind, count)
    videos = method.videos(job, layers, cases)
    figures: dict[str, Any] = dict(measure(job.world, clip, videos, cases))
    figures["tuning_seconds"] = round(tuned - started, 1)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    return figures


def with_means(found: dict[str, dict[int, dict[str, Figures]]]) -> dict[str, dict[int, Any]]:
    """Method -> seed -> motion -> figures, with the mean over the motions."""
    return {
        name: {seed: {**kinds, MEAN: average(list(kinds.values()))} for seed, kinds in rows.items()}
        for name, rows in found.items()
    }


def chosen(known: Sequence[str], what: str) -> Any:
    """A type for argparse: `all`, or names with commas."""

    def read(text: str) -> list[str]:
        names = list(known) if text == "all" else [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown {what} '{name}': choose all, or from {', '.join(known)}"
                )
        return names

    return read


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    command = parser("table1", __doc__)
    add = command.add_argument
    add("--world", choices=WORLDS, default="sprites")
    add("--base", type=Path, help="a base model of the world, in place of its own")
    add("--motions", default="all", help="all, or names with commas")
    add("--methods", type=chosen(list(METHODS), "method"), default=list(METHODS))
    add("--seed", type=int, default=0, help="the first seed")
    add("--seeds", type=positive, default=1, help="number of seeds")
    add("--cases", type=positive, default=12, help="unseen objects for each motion")
    add("--steps", type=positive, help="of training, in place of each motion's own number")
    add("--guidance", type=float, default=GUIDANCE, help="by the prompt, of the baselines")
    add("--threads", type=positive, default=1)
    add("--keep", type=Path, help="folder of finished work, to resume from")
    add("--save-plot", type=Path, help="an SVG file")
    args = command.parse_args(arguments)
    try:
        args.motions = chosen(list(WORLDS[args.world].recipes), "motion")(args.motions)
    except argparse.ArgumentTypeError as error:
        command.error(str(error))
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    world = WORLDS[args.world]
    recipes = {kind: world.recipes[kind] for kind in args.motions}
    if args.steps:
        recipes = {kind: replace(recipe, steps=args.steps) for kind, recipe in recipes.items()}
    base_path = args.base or world.base_path
    toy, clip = load_toy_base(path=base_path), load_toy_clip(world.clip_path)
    settings = {
        "world": world.name,
        "base": digest(base_path),
        "clip": digest(world.clip_path),
        "recipes": {kind: asdict(recipe) for kind, recipe in recipes.items()},
        "cases": args.cases,
        "guidance": args.guidance,
    }
    found: dict[str, dict[int, dict[str, Figures]]] = {}
    for name, kind, seed, figures in runs(
        world, toy, clip, recipes, args, Kept(args.keep, settings)
    ):
        own = {key: value for key, value in figures.items() if not key.endswith("seconds")}
        found.setdefault(name, {}).setdefault(seed, {})[kind] = own
        print(f"{name}, {kind}, seed {seed}: {figures['seconds']:.0f} s", flush=True)
    results = with_means(found)
    table(results, world.measures)
    told = orders(results)
    for order in told:
        print(order["says"])
    if args.save_plot:
        plot(args.save_plot, results, world.measures)
    summary = {"settings": settings, "retrieval": clip.about.get("retrieval"), "paper": PAPER}
    print(
        json.dumps(
            {
                **summary,
                "spread": means(results, world.measures),
                "orders": told,
                "results": results,
            }
        )
    )
    return 0


def digest(path: Path) -> str:
    """A short digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


if __name__ == "__main__":
    raise SystemExit(main())
