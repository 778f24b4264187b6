"""How much of a motion is left in a compact file?

    python -m benchmarks.toy.compact --keep FOLDER

Tunes motions on the toy world and stores each as a full file, in the compact form (`lamp compress`)
and, with `--ranks`, tuned as factors of these ranks from the first step on. Each file is loaded and
generates the same unseen objects; its score is the mean overlap with the true place over both sets
of benchmarks.motion. With few `--steps` a motion is half learned.

Prints a table, and last one line of JSON. Exit status 0 only if every compact file has at most a
tenth of the full one's size and keeps at least 98 % of its score.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Table, finish, parser
from lamp.motion_file.compress import SIZE
from lamp.motion_file.file import load_motion_file
from lamp.motion_file.provenance import save_motion_file
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.cases import evaluation_cases
from lamp.toy.motions import MOTIONS
from lamp.training.outcome import Outcome

from .runs import (
    FIRST,
    RECIPES,
    SETS,
    Recipe,
    Sampler,
    finished,
    fresh_motion,
    measure,
    motion_names,
    start_training,
)

MOST_SIZE, LEAST_SCORE = 0.1, 0.98


def tuned_file(path: Path, toy: ToyBase, recipe: Recipe, seed: int, kind: str) -> Path:
    """The file of a motion, tuned unless an earlier run stored it."""
    if not path.is_file():
        training = finished(start_training(toy, recipe, seed, kind))
        Outcome(path.with_suffix(""), {"family": training.motion.sites.family}).write(training)
    return path


def score(path: Path, toy: ToyBase, recipe: Recipe, seed: int, kind: str, count: int) -> float:
    """Mean overlap of the videos that a file generates."""
    motion = fresh_motion(toy, seed)
    motion.load_state_dict(load_motion_file(path).state)
    sampler, found = Sampler(toy, motion.requires_grad_(False), recipe, seed), []
    for which in SETS:
        cases = evaluation_cases(seed, which, kind, count=count)
        found.append(measure(sampler.videos(cases), cases)["iou"])
    return sum(found) / len(found)


def files(
    folder: Path, toy: ToyBase, recipe: Recipe, seed: int, kind: str, args: argparse.Namespace
) -> Iterator[tuple[str, Path]]:
    """Name and file of every form of one motion, the full one first."""
    start = f"{kind}-{recipe.steps}-{seed}"
    full = tuned_file(folder / f"{start}.safetensors", toy, recipe, seed, kind)
    yield "full", full
    for size in args.sizes:
        path = folder / f"{start}-size{size:g}.safetensors"
        yield f"size {size:g}", save_motion_file(path, load_motion_file(full), size=size)
    for rank in args.ranks:
        path = folder / f"{start}-rank{rank}.safetensors"
        yield f"rank {rank}", tuned_file(path, toy, replace(recipe, rank=rank), seed, kind)


def passes(result: dict[str, Any]) -> bool:
    """Whether every compact form is small and good; `rank` forms are other motions."""
    return all(
        row["size"] <= MOST_SIZE and row["kept"] >= LEAST_SCORE
        for name, row in result["forms"].items()
        if name.startswith("size")
    )


def main() -> int:
    command = parser("toy.compact", __doc__)
    command.add_argument(
        "--motions", type=motion_names(MOTIONS), default=[FIRST], help="names, or all"
    )
    command.add_argument("--seed", type=int, default=0, help="the first seed")
    command.add_argument("--seeds", type=int, default=1)
    command.add_argument("--steps", type=int, help="tuning steps, in place of the recipe's")
    command.add_argument("--sizes", type=float, nargs="*", default=[SIZE])
    command.add_argument("--ranks", type=int, nargs="*", default=[])
    command.add_argument("--cases", type=int, default=16, help="unseen objects per set")
    command.add_argument("--keep", type=Path, help="folder of the files, to reuse")
    args = command.parse_args()
    torch.set_num_threads(1)
    toy, results = load_toy_base(), []
    labels = {"motion": 12, "steps": 5, "seed": 5, "form": 12}
    table = Table(labels, ("score", "bytes", "kept", "size"), places=3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for kind in args.motions:
            steps = args.steps or RECIPES[kind].steps
            recipe = replace(RECIPES[kind], steps=steps, motion_guidance=1.0)
            for seed in range(args.seed, args.seed + args.seeds):
                rows: dict[str, dict[str, float]] = {}
                for name, path in files(folder, toy, recipe, seed, kind, args):
                    found = score(path, toy, recipe, seed, kind, args.cases)
                    row = {"score": found, "bytes": float(path.stat().st_size)}
                    full = rows.get("full", row)
                    row |= {"kept": found / full["score"], "size": row["bytes"] / full["bytes"]}
                    rows[name] = {key: round(value, 4) for key, value in row.items()}
                    table.row(kind, recipe.steps, seed, name, *rows[name].values())
                about = {"motion": kind, "steps": recipe.steps, "seed": seed}
                results.append({**about, "forms": rows})
    passed = all(passes(result) for result in results)
    return finish({"pass": passed, "cases": args.cases, "results": results})


if __name__ == "__main__":
    sys.exit(main())
