"""How soon is the motion learned? The recipes `paper` and `fast` on the toy base, several seeds.

    python -m benchmarks.recipe --seeds 3 --save-plot recipe.png

Both learn the same eight clips; at several lengths of the run the motion is measured on unseen
objects as in benchmarks.toy.motion (mean overlap, combination set). `paper` has a
constant rate, so one run is measured along its way; `fast` falls to zero over its run, so each
length is a run of its own. The paper's rate was chosen for layers of 320 to 1280 channels, and the
toy's have 64: `paper wide` is the paper's recipe with its rate scaled to that width, so that `fast`
is not compared with a rate that is merely too low for a small model.

Prints a table, and last one line of JSON. Exit status 0 only if on every seed `fast`, in a fifth
of the steps, is at least as good as `paper` at the end of its own, and as `paper wide` but for
0.03, about what an overlap moves by when eight other objects are taken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.toy.motion import FIRST, RECIPES, fresh_motion, latent_clips, measure, render
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.toy.base import PATH, ToyBase, load_toy_base
from lamp.toy.cases import evaluation_cases, training_clips
from lamp.toy.world import FRAMES
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig, preset

Curve = dict[int, dict[str, float]]  # steps -> measures

FIFTH = 5
SAMPLING_NOISE = 0.03  # of the mean overlap of eight objects
SD_WIDTH, TOY_WIDTH = 800, 64  # channels: SD 1.x's on average over its layers, and the toy's
RECIPE_NAMES = ("paper", "paper wide", "fast")
_COLOURS = {"paper": (150, 150, 150), "paper wide": (200, 120, 40), "fast": (24, 84, 168)}


def settings(name: str, steps: int) -> dict[str, Any]:
    """What a recipe fixes, for a run of `steps` steps."""
    if name == "paper wide":
        return {"learning_rate": TrainConfig.learning_rate * SD_WIDTH / TOY_WIDTH}
    return preset(name, steps)


def learn(
    toy: ToyBase, name: str, steps: int, stops: list[int], seed: int, cases: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """Train one run and measure it at `stops`."""
    recipe = RECIPES[FIRST]
    clips = latent_clips(toy, training_clips(seed, FIRST), recipe.prompts)
    batch, given = recipe.clips_per_step, settings(name, steps)
    config = TrainConfig(steps=steps, frames=FRAMES, batch=batch, seed=seed, **given)
    motion = fresh_motion(toy, seed)
    training = Training(DiffusersHost(toy.unet), motion, clips, config)
    unseen = evaluation_cases(seed, "combination", FIRST, count=cases)
    while training.step < steps:
        training.advance()
        if training.step in stops:
            with torch.no_grad():
                yield training.step, measure(render(toy, motion, unseen, recipe, seed), unseen)


def curve(toy: ToyBase, name: str, args: argparse.Namespace, seed: int) -> Curve:
    """Measures of a recipe at several lengths; see the module's own words on the difference."""
    if name != "fast":
        every = args.steps // FIFTH
        stops = list(range(every, args.steps + 1, every))
        return dict(learn(toy, name, args.steps, stops, seed, args.cases))
    longest = args.steps // FIFTH
    lengths = sorted({longest // 4, longest // 2, longest})
    return {n: row for n in lengths for _, row in learn(toy, name, n, [n], seed, args.cases)}


def is_faster(curves: dict[str, Curve]) -> bool:
    """`fast` ends, a fifth of the way, where the others end or beyond."""
    ends = {name: rows[max(rows)]["iou"] for name, rows in curves.items()}
    return ends["fast"] >= max(ends["paper"], ends["paper wide"] - SAMPLING_NOISE)


def save_plot(
    path: Path, results: list[dict[str, Any]], size: tuple[int, int] = (720, 400)
) -> None:
    """Overlap over steps, a line for each recipe and seed."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = 48, 16, size[0] - 16, size[1] - 32
    draw.rectangle((left, top, right, bottom), outline=(96, 96, 96))
    last = max(int(n) for result in results for rows in result["curves"].values() for n in rows)
    for result in results:
        for name, rows in result["curves"].items():
            points = [(0.0, 0.0), *((float(n), row["iou"]) for n, row in sorted(rows.items()))]
            line = [
                (left + (right - left) * n / last, bottom - (bottom - top) * y) for n, y in points
            ]
            draw.line(line[1:] if len(line) > 2 else line, fill=_COLOURS[name], width=2)
            for x, y in line[1:]:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=_COLOURS[name])
    for number, name in enumerate(_COLOURS):
        draw.text((left + 12, top + 8 + 14 * number), name, fill=_COLOURS[name])
    draw.text((6, top), "IoU 1", fill=(96, 96, 96))
    draw.text((right - 72, bottom + 8), f"step {last}", fill=(96, 96, 96))
    picture.save(path)


def run(toy: ToyBase, args: argparse.Namespace) -> dict[str, Any]:
    """All recipes on all seeds."""
    results = []
    for seed in range(args.seed, args.seed + args.seeds):
        started = time.perf_counter()
        curves = {name: curve(toy, name, args, seed) for name in RECIPE_NAMES}
        for name, rows in curves.items():
            line = "  ".join(
                f"{n}: {row['iou']:.3f}/{row['nrmse']:.3f}/{row['followed']:.2f}"
                for n, row in rows.items()
            )
            print(f"seed {seed} {name:<10} {line}", flush=True)
        seconds = round(time.perf_counter() - started, 1)
        results.append(
            {"seed": seed, "curves": curves, "pass": is_faster(curves), "seconds": seconds}
        )
    if args.save_plot:
        save_plot(args.save_plot, results)
    return {"pass": all(result["pass"] for result in results), "results": results}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of the paper's recipe")
    parser.add_argument("--cases", type=int, default=8, help="unseen objects")
    parser.add_argument("--base", type=Path, default=PATH)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-plot", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("steps: overlap / median path error / share followed")
    result = run(load_toy_base(path=args.base), args)
    print(json.dumps(result))
    return 0 if result["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
