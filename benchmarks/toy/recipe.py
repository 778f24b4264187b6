"""How fast do the recipes `paper` and `fast` learn a motion on the toy base?

    python -m benchmarks.recipe --seeds 3 --save-plot recipe.png

Both learn the same eight clips. At several lengths of the run the motion is measured on unseen
objects as in benchmarks.motion (mean overlap, combination set). `paper` has a constant rate, so one
run is measured along its way; the rate of `fast` falls to zero, so each length is its own run. The
paper chose its rate for layers of 320 to 1280 channels, and the toy's have 64: `paper wide` is the
paper's recipe with the rate scaled to that width, so that `fast` is not compared with a rate that
is merely too low for a small model. `muon` is `fast` with that optimizer. `fast, guided` and
`muon, guided` sample the same motions with motion guidance; the others sample without.

Prints a table, and last one line of JSON. Exit status 0 only if on every seed, in a fifth of the
steps, `fast` is at least as good as `paper` at its end, and `muon` as `paper wide` minus 0.03,
about the change of overlap with eight other objects.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import finish, parser, save_plot
from lamp.toy.base import PATH, ToyBase, load_toy_base
from lamp.toy.cases import evaluation_cases
from lamp.training.recipe import TrainConfig, preset

from .runs import FIRST, MOTION_GUIDANCE, RECIPES, Sampler, measure, start_training

Curve = dict[int, dict[str, float]]  # steps -> measures

FIFTH = 5
SAMPLING_NOISE = 0.03  # of the mean overlap of eight objects
SD_WIDTH, TOY_WIDTH = 800, 64  # mean channels of SD 1.x's layers, and of the toy's
GUIDED = {"fast": "fast, guided", "muon": "muon, guided"}
_COLOURS = {
    "paper": (150, 150, 150),
    "paper wide": (200, 120, 40),
    "fast": (24, 84, 168),
    GUIDED["fast"]: (40, 150, 80),
    "muon": (130, 60, 170),
    GUIDED["muon"]: (200, 60, 120),
}


def settings(name: str, steps: int) -> dict[str, Any]:
    """The settings of a recipe for a run of `steps` steps."""
    if name == "paper wide":
        return {"learning_rate": TrainConfig.learning_rate * SD_WIDTH / TOY_WIDTH}
    return preset("fast", steps) | {"optimizer": "muon"} if name == "muon" else preset(name, steps)


def learn(
    toy: ToyBase, name: str, steps: int, stops: Sequence[int], seed: int, cases: int
) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Train one run and measure it at `stops`: label of the curve, step and measures."""
    recipe = replace(RECIPES[FIRST], steps=steps)
    training = start_training(toy, recipe, seed, FIRST, settings=settings(name, steps))
    scales = {name: 1.0} | ({GUIDED[name]: MOTION_GUIDANCE} if name in GUIDED else {})
    unseen = evaluation_cases(seed, "combination", FIRST, count=cases)
    while training.step < steps:
        training.advance()
        if training.step not in stops:
            continue
        for label, scale in scales.items():
            own = replace(recipe, motion_guidance=scale)
            with torch.no_grad():
                videos = Sampler(toy, training.motion, own, seed).videos(unseen)
            yield label, training.step, measure(videos, unseen)


def run(toy: ToyBase, args: argparse.Namespace, seed: int) -> dict[str, Curve]:
    """Measures of every recipe at several lengths; see the module's docstring."""
    fifth = args.steps // FIFTH
    along = range(fifth, args.steps + 1, fifth)
    runs = [(name, args.steps, along) for name in ("paper", "paper wide")]
    lengths = sorted({fifth // 4, fifth // 2, fifth})
    runs += [(name, n, range(n, n + 1)) for name in GUIDED for n in lengths]
    curves: dict[str, Curve] = {label: {} for label in _COLOURS}
    for name, steps, stops in runs:
        for label, step, row in learn(toy, name, steps, stops, seed, args.cases):
            curves[label][step] = row
    return curves


def steps_to(curve: Curve, overlap: float) -> int | None:
    """The fewest measured steps with at least this mean overlap; None if there are none."""
    return min((step for step, row in curve.items() if row["iou"] >= overlap), default=None)


def is_faster(curves: dict[str, Curve]) -> bool:
    """Whether `fast` and `muon` end where the paper's recipes end or beyond."""
    ends = {name: rows[max(rows)]["iou"] for name, rows in curves.items()}
    wide = ends["paper wide"] - SAMPLING_NOISE
    return ends["fast"] >= ends["paper"] and ends["muon"] >= wide


def main() -> int:
    command = parser("recipe", __doc__)
    command.add_argument("--seed", type=int, default=0, help="the first seed")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--steps", type=int, default=1000, help="of the paper's recipe")
    command.add_argument("--cases", type=int, default=8, help="unseen objects")
    command.add_argument("--overlap", type=float, default=0.75, help="whose steps are reported")
    command.add_argument("--base", type=Path, default=PATH)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--save-plot", type=Path)
    args = command.parse_args()
    torch.set_num_threads(args.threads)
    toy, results = load_toy_base(path=args.base), []
    print("steps: overlap / median path error / share followed")
    for seed in range(args.seed, args.seed + args.seeds):
        started = time.perf_counter()
        curves = run(toy, args, seed)
        for name, rows in curves.items():
            columns = ("iou", "nrmse", "followed")
            cells = (
                f"{n}: " + "/".join(f"{row[c]:.3f}" for c in columns) for n, row in rows.items()
            )
            reached = steps_to(rows, args.overlap)
            print(f"seed {seed} {name:<12} " + "  ".join(cells), flush=True)
            print(f"  overlap {args.overlap:g}: " + (f"{reached} steps" if reached else "never"))
        found = {"seed": seed, "curves": curves, "pass": is_faster(curves)}
        found["steps to overlap"] = {n: steps_to(rows, args.overlap) for n, rows in curves.items()}
        found["seconds"] = round(time.perf_counter() - started, 1)
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
