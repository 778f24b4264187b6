"""Does tuning on eight toy clips teach the motion, for objects that no clip shows?

    python -m benchmarks.motion --seed 3 --save-sheet sheet.png
    python -m benchmarks.motion --motions grow,rotate --seeds 3
    python -m benchmarks.motion --ablations --seeds 3

Runs the whole method on the toy base (see lamp/toy): few-shot tuning on 8 clips of 8 frames, shared
noise, the AdaIN schedule. Tests two sets of unseen objects, beside two controls that must fail: the
model before tuning, and a static video. Prints a table, and last one line of JSON. Exit status 0
only if every mark holds. `--ablations` runs benchmarks/toy/ablations.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import Table, finish, parser
from lamp.toy import score
from lamp.toy.base import PATH, ToyBase, load_toy_base
from lamp.toy.cases import Case, evaluation_cases
from lamp.toy.motions import MOTIONS

from . import ablations, ablations_sprites
from .runs import (
    FIRST,
    MUON,
    RECIPES,
    SETS,
    Recipe,
    Sampler,
    Videos,
    fresh_motion,
    measure,
    motion_names,
    positive,
    tune,
)

COLUMNS = tuple("iou worst nrmse gain area kept ground followed paced appearance".split())
ScoreTable = dict[str, dict[str, dict[str, float]]]  # set -> model -> measure
# By set: mean overlap and share followed must reach their marks, the median path error must stay
# below its own. A still video has a path error of 1 and never follows.
_MARKED = ("iou", "nrmse", "followed")
MARKS: dict[str, dict[str, dict[str, float]]] = {
    kind: {which: dict(zip(_MARKED, marks, strict=True)) for which, marks in sets}
    for kind, *sets in (
        ("moves_right", ("combination", (0.70, 0.15, 0.85)), ("hard", (0.65, 0.15, 0.75))),
        ("rotate", ("combination", (0.82, 0.25, 0.70)), ("hard", (0.74, 0.38, 0.37))),
        ("grow", ("combination", (0.82, 0.25, 0.88)), ("hard", (0.77, 0.30, 0.80))),
        ("bounce", ("combination", (0.72, 0.24, 0.90)), ("hard", (0.58, 0.26, 0.80))),
        ("wave", ("combination", (0.74, 0.24, 0.88)), ("hard", (0.66, 0.27, 0.75))),
        ("two_objects", ("combination", (0.72, 0.14, 0.90)), ("hard", (0.58, 0.20, 0.75))),
    )
}


def reaches(figures: dict[str, float], marks: dict[str, float]) -> bool:
    """The path error must stay below its mark, everything else above."""
    return all(
        figures[name] <= mark if name == "nrmse" else figures[name] >= mark
        for name, mark in marks.items()
    )


def passes(figures: ScoreTable, marks: dict[str, dict[str, float]]) -> bool:
    """The tuned model reaches all marks of each set, and nothing else does."""
    return all(
        reaches(row, marks[which]) == (model == "tuned")
        for which in marks
        for model, row in figures[which].items()
    )


def save_sheet(path: Path, videos: Videos, cases: list[Case], zoom: int = 3) -> None:
    """One row per case: generated frames, then the true last frame."""
    from PIL import Image

    pairs = zip(videos, cases, strict=True)
    rows = [np.concatenate([*video, case.frames[-1]], axis=1) for video, case in pairs]
    sheet = np.concatenate(rows, axis=0)
    size = (sheet.shape[1] * zoom, sheet.shape[0] * zoom)
    Image.fromarray(sheet).resize(size, Image.Resampling.NEAREST).save(path)


def run(
    toy: ToyBase, kind: str, seed: int, recipe: Recipe, args: argparse.Namespace
) -> dict[str, Any]:
    """One motion and seed, tested on both sets."""
    started = time.perf_counter()
    motion = tune(toy, recipe, seed, kind)
    tuned = time.perf_counter()
    figures: ScoreTable = {}
    sheet_videos, sheet_cases = [], []
    for which in SETS:
        cases = evaluation_cases(seed, which, kind, count=args.cases, pace=recipe.pace)
        few = cases[: args.untuned_cases]
        videos = Sampler(toy, motion, recipe, seed).videos(cases)
        still = np.stack([score.static_video(case) for case in cases])
        before = Sampler(toy, fresh_motion(toy, seed), recipe, seed).videos(few)
        figures[which] = {
            "tuned": measure(videos, cases),
            "untuned": measure(before, few),
            "static": measure(still, cases),
        }
        sheet_videos.append(videos)
        sheet_cases += cases
    if args.save_sheet:
        path: Path = args.save_sheet
        if len(args.motions) * args.seeds > 1:
            path = path.with_name(f"{path.stem}_{kind}_{seed}{path.suffix}")
        save_sheet(path, np.concatenate(sheet_videos), sheet_cases)
    return {
        "motion": kind,
        "seed": seed,
        "figures": figures,
        "marks": MARKS[kind],
        "pass": passes(figures, MARKS[kind]),
        "tuning_seconds": round(tuned - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def spreads(results: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Set -> measure -> lowest and highest figure of the tuned models over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for which in SETS:
        rows = [result["figures"][which]["tuned"] for result in results]
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        found[which] = {name: [min(values), max(values)] for name, values in columns.items()}
    return found


def summary(results: list[dict[str, Any]], recipes: dict[str, Recipe]) -> dict[str, Any]:
    """A single run unchanged; several by motion, with recipe, spread and seeds."""
    if len(results) == 1:
        return results[0]
    motions = {}
    for kind, recipe in recipes.items():
        own = [result for result in results if result["motion"] == kind]
        motions[kind] = {
            "pass": all(result["pass"] for result in own),
            "marks": MARKS[kind],
            "spread": spreads(own),
            "recipe": asdict(recipe),
            "seeds": own,
        }
    return {"pass": all(result["pass"] for result in results), "motions": motions}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    command = parser("motion", __doc__)
    add = command.add_argument
    add("--motions", type=motion_names(MOTIONS), default=[FIRST], help="all, or names with commas")
    add("--seed", type=int, default=0, help="the first seed")
    add("--seeds", type=positive, default=1, help="number of seeds")
    add("--cases", type=int, default=16, help="unseen objects per set")
    add("--untuned-cases", type=int, default=2)
    add("--base", type=Path, default=PATH)
    add("--threads", type=int, default=1)
    add("--save-sheet", type=Path)
    recipe = command.add_argument_group("in place of the motion's own recipe")
    for name, kind in Recipe.__annotations__.items():
        value = {"int": int, "float": float, "str": str}[kind]
        known = ("caption", "motion") if name == "prompts" else None
        recipe.add_argument(f"--{name.replace('_', '-')}", type=value, choices=known)
    group = command.add_argument_group("the paper's ablations, of one motion")
    group.add_argument("--ablations", action="store_true")
    group.add_argument("--keep", type=Path, help="folder of finished work, to resume from")
    group.add_argument("--save-plot", type=Path, help="an SVG file")
    args = command.parse_args(arguments)
    if args.ablations and len(args.motions) > 1:
        command.error("--ablations takes one motion")
    return args


def chosen_recipes(args: argparse.Namespace) -> dict[str, Recipe]:
    given = {name: getattr(args, name) for name in Recipe.__annotations__}
    changes = {name: value for name, value in given.items() if value is not None}
    known = RECIPES if args.ablations else MUON
    return {kind: replace(known[kind], **changes) for kind in args.motions}


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    toy, recipes, results = load_toy_base(path=args.base), chosen_recipes(args), []
    if args.ablations:
        (kind,) = args.motions
        return ablations.main(toy, ablations_sprites.WORLD, kind, recipes[kind], args)
    table = Table({"motion": 12, "seed": 5, "set": 12, "model": 8}, COLUMNS, 11, 3)
    for kind, recipe in recipes.items():
        for seed in range(args.seed, args.seed + args.seeds):
            result = run(toy, kind, seed, recipe, args)
            for which, models in result["figures"].items():
                for model, row in models.items():
                    table.row(kind, seed, which, model, *(row[name] for name in COLUMNS))
            verdict = "learned" if result["pass"] else "NOT learned"
            print(f"{kind:<12} {seed:>5} {verdict}, {result['seconds']:.0f} s")
            results.append(result)
    return finish(summary(results, recipes))


if __name__ == "__main__":
    sys.exit(main())
