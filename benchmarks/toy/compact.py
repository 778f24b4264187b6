"""What is left of a motion in a small file? `python -m benchmarks.toy.compact --keep FOLDER`.

Tunes motions on the toy world and writes each as a full file, in the compact form (`lamp compress`)
and, with `--ranks`, tuned anew as factors of these ranks from the first step on. Each file is read
again and draws the same unseen objects; its score is the mean overlap with the true place, over
both sets of benchmarks.motion. With few `--steps` a motion is half learned.

Prints a table and, last, one line of JSON. Exit status 0 only if every compact file has at most a
tenth of the full one's size and keeps at least 98 % of its score.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lamp.motion_file.compress import SIZE
from lamp.motion_file.file import load_motion_file
from lamp.motion_file.provenance import save_motion_file
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.cases import evaluation_cases
from lamp.training.outcome import Outcome

from .motion import (
    FIRST,
    RECIPES,
    SETS,
    Recipe,
    fresh_motion,
    measure,
    motion_names,
    render,
    trained,
)

MOST_SIZE, LEAST_SCORE = 0.1, 0.98


def tuned_file(path: Path, toy: ToyBase, recipe: Recipe, seed: int, kind: str) -> Path:
    """The file of a motion, learned unless an earlier run kept it."""
    if not path.is_file():
        training = trained(toy, recipe, seed, kind, quiet=True)
        Outcome(path.with_suffix(""), {"family": training.motion.sites.family}).write(training)
    return path


def score(path: Path, toy: ToyBase, recipe: Recipe, seed: int, kind: str, count: int) -> float:
    """Mean overlap of the videos that a file draws."""
    motion = fresh_motion(toy, seed)
    motion.load_state_dict(load_motion_file(path).state)
    motion.requires_grad_(False)
    found = []
    for which in SETS:
        cases = evaluation_cases(seed, which, kind, count=count)
        found.append(measure(render(toy, motion, cases, recipe, seed), cases)["iou"])
    return sum(found) / len(found)


def files(
    folder: Path, toy: ToyBase, recipe: Recipe, seed: int, kind: str, args: argparse.Namespace
) -> Iterator[tuple[str, Path]]:
    """Name and file of every form of one motion, the full one first."""
    start = f"{kind}-{recipe.steps}-{seed}"
    full = tuned_file(folder / f"{start}.safetensors", toy, recipe, seed, kind)
    yield "full", full
    whole = load_motion_file(full)
    for size in args.sizes:
        path = folder / f"{start}-size{size:g}.safetensors"
        yield f"size {size:g}", save_motion_file(path, whole, size=size)
    for rank in args.ranks:
        path = folder / f"{start}-rank{rank}.safetensors"
        ranked = replace(recipe, rank=rank)
        yield f"rank {rank}", tuned_file(path, toy, ranked, seed, kind)


def compare(
    folder: Path, toy: ToyBase, recipe: Recipe, seed: int, kind: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Score and size of every form of one motion, as such and in units of the full one's."""
    rows: dict[str, dict[str, float]] = {}
    for name, path in files(folder, toy, recipe, seed, kind, args):
        row = {
            "score": score(path, toy, recipe, seed, kind, args.cases),
            "bytes": float(path.stat().st_size),
        }
        full = rows.get("full", row)
        shares = {"kept": row["score"] / full["score"], "size": row["bytes"] / full["bytes"]}
        rows[name] = {key: round(value, 4) for key, value in {**row, **shares}.items()}
        print(
            f"{kind:<12} {recipe.steps:>5} {seed:>5} {name:<12} {row['score']:>7.3f} "
            f"{shares['kept']:>7.1%} {shares['size']:>7.1%}",
            flush=True,
        )
    return {"motion": kind, "steps": recipe.steps, "seed": seed, "forms": rows}


def passes(result: dict[str, Any]) -> bool:
    """Whether every compact form is small and as good. What is tuned anew is another motion."""
    return all(
        row["size"] <= MOST_SIZE and row["kept"] >= LEAST_SCORE
        for name, row in result["forms"].items()
        if name.startswith("size")
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.toy.compact",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--motions", type=motion_names, default=[FIRST], help="names, or all")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of the tuning, in place of the recipe's")
    parser.add_argument("--sizes", type=float, nargs="*", default=[SIZE])
    parser.add_argument("--ranks", type=int, nargs="*", default=[])
    parser.add_argument("--cases", type=int, default=16, help="unseen objects per set")
    parser.add_argument("--keep", type=Path, help="folder of the files; what is there is not tuned")
    args = parser.parse_args()
    torch.set_num_threads(1)
    toy, results = load_toy_base(), []
    print(
        f"{'motion':<12} {'steps':>5} {'seed':>5} {'form':<12} {'score':>7} {'kept':>7} {'size':>7}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for kind in args.motions:
            recipe = RECIPES[kind]
            recipe = replace(recipe, steps=args.steps or recipe.steps)
            for seed in range(args.seed, args.seed + args.seeds):
                folder = args.keep or Path(temporary)
                results.append(compare(folder, toy, recipe, seed, kind, args))
    passed = all(passes(result) for result in results)
    print(json.dumps({"pass": passed, "cases": args.cases, "results": results}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
