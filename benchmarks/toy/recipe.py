"""How fast do the recipes `paper` and `fast` learn a motion on the toy base?

    python -m benchmarks.recipe --seeds 3 --save-plot recipe.png

Both learn the same eight clips. At several lengths of the run the motion is measured on unseen
objects as in benchmarks.motion (mean overlap, combination set). `paper` has a constant rate, so one
run is measured along its way; the rate of `fast` falls to zero, so each length is its own run. The
paper chose its rate for layers of 320 to 1280 channels, and the toy's have 64: `paper wide` is the
paper's recipe with the rate scaled to that width, so that `fast` is not compared with a rate that
is merely too low for a small model.

Prints a table, and last one line of JSON. Exit status 0 only if on every seed `fast` in a fifth of
the steps is at least as good as `paper` at its end, and as `paper wide` minus 0.03, about the
change of overlap with eight other objects.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import finish, parser, save_plot
from lamp.toy.base import PATH, ToyBase, load_toy_base
from lamp.toy.cases import evaluation_cases
from lamp.training.recipe import TrainConfig, preset

from .runs import FIRST, RECIPES, Sampler, measure, start_training

Curve = dict[int, dict[str, float]]  # steps -> measures

FIFTH = 5
SAMPLING_NOISE = 0.03  # of the mean overlap of eight objects
SD_WIDTH, TOY_WIDTH = 800, 64  # mean channels of SD 1.x's layers, and of the toy's
_COLOURS = {"paper": (150, 150, 150), "paper wide": (200, 120, 40), "fast": (24, 84, 168)}


def settings(name: str, steps: int) -> dict[str, Any]:
    """The settings of a recipe for a run of `steps` steps."""
    if name == "paper wide":
        return {"learning_rate": TrainConfig.learning_rate * SD_WIDTH / TOY_WIDTH}
    return preset(name, steps)


def learn(
    toy: ToyBase, name: str, steps: int, stops: list[int], seed: int, cases: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train one run and measure it at `stops`."""
    recipe = replace(RECIPES[FIRST], steps=steps)
    training = start_training(toy, recipe, seed, FIRST, settings=settings(name, steps))
    sampler = Sampler(toy, training.motion, recipe, seed)
    unseen = evaluation_cases(seed, "combination", FIRST, count=cases)
    while training.step < steps:
        training.advance()
        if training.step in stops:
            with torch.no_grad():
                yield training.step, measure(sampler.videos(unseen), unseen)


def curve(toy: ToyBase, name: str, args: argparse.Namespace, seed: int) -> Curve:
    """Measures of a recipe at several lengths; see the module's docstring."""
    fifth = args.steps // FIFTH
    if name != "fast":
        stops = list(range(fifth, args.steps + 1, fifth))
        return dict(learn(toy, name, args.steps, stops, seed, args.cases))
    lengths = sorted({fifth // 4, fifth // 2, fifth})
    return {n: row for n in lengths for _, row in learn(toy, name, n, [n], seed, args.cases)}


def is_faster(curves: dict[str, Curve]) -> bool:
    """Whether `fast` ends where the others end or beyond."""
    ends = {name: rows[max(rows)]["iou"] for name, rows in curves.items()}
    return ends["fast"] >= max(ends["paper"], ends["paper wide"] - SAMPLING_NOISE)


def main() -> int:
    command = parser("recipe", __doc__)
    command.add_argument("--seed", type=int, default=0, help="the first seed")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--steps", type=int, default=1000, help="of the paper's recipe")
    command.add_argument("--cases", type=int, default=8, help="unseen objects")
    command.add_argument("--base", type=Path, default=PATH)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--save-plot", type=Path)
    args = command.parse_args()
    torch.set_num_threads(args.threads)
    toy, results = load_toy_base(path=args.base), []
    print("steps: overlap / median path error / share followed")
    for seed in range(args.seed, args.seed + args.seeds):
        started = time.perf_counter()
        curves = {name: curve(toy, name, args, seed) for name in _COLOURS}
        for name, rows in curves.items():
            columns = ("iou", "nrmse", "followed")
            cells = (
                f"{n}: " + "/".join(f"{row[c]:.3f}" for c in columns) for n, row in rows.items()
            )
            print(f"seed {seed} {name:<10} " + "  ".join(cells), flush=True)
        seconds = round(time.perf_counter() - started, 1)
        found = {"seed": seed, "curves": curves, "pass": is_faster(curves), "seconds": seconds}
        results.append(found)
    if args.save_plot:
        lines = [
            (name, [(float(n), row["iou"]) for n, row in sorted(rows.items())])
            for result in results
            for name, rows in result["curves"].items()
        ]
        save_plot(args.save_plot, {"mean overlap (IoU) over steps": lines}, _COLOURS)
    return finish({"pass": all(result["pass"] for result in results), "results": results})


if __name__ == "__main__":
    sys.exit(main())
