"""The paper's eight motions in the world of landscapes: are they learned from eight clips?

    python -m benchmarks.scenes --seeds 3 --keep build/scenes --save-gif build/scenes
    python -m benchmarks.scenes --measures
    python -m benchmarks.scenes --ablations --motions smile --seeds 3

Six first frames a motion, in colours and places that no clip shows. The motion's own measures (see
lamp/toy/scenes/score.py) must be high for the true videos, and low for still ones and for another
motion. A motion is tuned on eight clips, and its videos must be better than those of the untuned
model. Prints a table, and last one line of JSON. `--ablations` runs benchmarks/toy/ablations.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.report import Table, finish, parser
from lamp.method.motion import Motion
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.scenes.base import PATH
from lamp.toy.scenes.cases import CASES, FRAMES, SceneCase, evaluation_cases, training_clips
from lamp.toy.scenes.motions import MOTIONS
from lamp.toy.scenes.score import FOLLOWED, score_video, still_video, summarise, wrong_video

from . import ablations, ablations_scenes
from .runs import (
    MOTION_GUIDANCE,
    Recipe,
    Sampler,
    Videos,
    finished,
    fresh_motion,
    kept_motion,
    motion_names,
    positive,
    start_training,
)

Figures = dict[str, float]
# Chosen on seed 400.
RECIPES = {kind: Recipe(steps=300 if kind == "smile" else 500) for kind in MOTIONS}
RECIPES["birds"] = replace(RECIPES["birds"], timestep_shift=3.0)


def measured(videos: Videos, cases: list[SceneCase]) -> Figures:
    """Mean figures of a motion's videos; ``motion`` is the lowest of its own measures."""
    pairs = zip(videos, cases, strict=True)
    return summarise([score_video(video, case) for video, case in pairs])


def save_gif(path: Path, rows: list[Videos], zoom: int = 3, seconds: float = 0.12) -> None:
    """One row of videos (n, f, h, w, 3) under the other, side by side, in a loop."""
    joined = np.concatenate([np.concatenate(list(videos), axis=2) for videos in rows], axis=1)
    height, width = joined.shape[1:3]
    pictures = [
        Image.fromarray(frame).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
        for frame in joined
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = round(1000 * seconds)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=duration, loop=0)


def tuned_videos(
    toy: ToyBase,
    kind: str,
    recipe: Recipe,
    cases: list[SceneCase],
    seed: int,
    keep: Path | None = None,
) -> dict[str, Videos]:
    """Videos of the model tuned on the eight clips of this seed, and of the untuned one.

    `keep`: a file with the tuned motion; it is written if there is none.
    """

    def train() -> Motion:
        clips = training_clips(seed, kind, frames=len(cases[0].frames))
        return finished(start_training(toy, recipe, seed, kind, clips=clips), quiet=False).motion

    tuned = kept_motion(keep, fresh_motion(toy, seed), train)
    models = {"tuned": tuned, "untuned": fresh_motion(toy, seed)}
    return {
        name: Sampler(toy, motion, recipe, seed).videos(cases) for name, motion in models.items()
    }


def run(
    toy: ToyBase | None,
    kind: str,
    seed: int,
    cases: list[SceneCase],
    args: argparse.Namespace,
) -> dict[str, Videos]:
    """Videos of one motion and seed: true, still, wrong, and tuned and untuned with a base."""
    recipe = chosen_recipe(kind, args)
    videos = {
        "true": np.stack([case.frames for case in cases]),
        "still": np.stack([still_video(case) for case in cases]),
        "wrong": np.stack([wrong_video(case) for case in cases]),
    }
    if toy is not None:
        file = f"{kind}_{seed}_{args.frames}_{recipe.steps}.safetensors"
        videos |= tuned_videos(toy, kind, recipe, cases, seed, args.keep and args.keep / file)
    return videos


def shown(videos: dict[str, Videos]) -> list[Videos]:
    """The rows of a picture: true videos, and tuned ones below them."""
    return [videos[name] for name in ("true", "tuned") if name in videos]


def holds(figures: dict[str, Figures]) -> bool:
    """The measures tell the truth from still and wrong videos, and tuning from no tuning."""
    motion = {name: row["motion"] for name, row in figures.items()}
    sound = motion["true"] >= 0.7 and motion["still"] <= 0.1 and motion["wrong"] < FOLLOWED
    return sound and ("tuned" not in motion or motion["tuned"] >= max(FOLLOWED, motion["untuned"]))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    command = parser("scenes", __doc__)
    add = command.add_argument
    add(
        "--motions",
        type=motion_names(MOTIONS),
        default=list(MOTIONS),
        help="all, or names with commas",
    )
    add("--base", type=Path, default=PATH, help="weights of the base")
    add("--measures", action="store_true", help="test the measures only, without a base")
    add("--seed", type=int, default=0, help="the first seed")
    add("--seeds", type=positive, default=1, help="number of seeds")
    add("--cases", type=positive, default=CASES, help="unseen first frames per motion")
    add("--frames", type=positive, default=FRAMES, help="8 or 16")
    add("--steps", type=positive, help="of tuning, in place of each motion's own number")
    add("--motion-guidance", type=float, default=MOTION_GUIDANCE)
    add("--threads", type=int, default=1)
    add("--keep", type=Path, help="folder of trained motions, to train each only once")
    add(
        "--save-gif",
        type=Path,
        help="folder for a GIF of each motion, true videos over tuned ones, and one of all motions",
    )
    group = command.add_argument_group("the paper's ablations, of one motion")
    group.add_argument("--ablations", action="store_true")
    group.add_argument("--save-plot", type=Path, help="an SVG file")
    args = command.parse_args(arguments)
    if args.ablations and (len(args.motions) > 1 or args.measures or args.frames != FRAMES):
        command.error(f"--ablations takes one motion of {FRAMES} frames, and a base")
    return args


def chosen_recipe(kind: str, args: argparse.Namespace) -> Recipe:
    recipe = replace(RECIPES[kind], motion_guidance=args.motion_guidance)
    return replace(recipe, steps=args.steps) if args.steps else recipe


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    toy = None if args.measures else load_toy_base(path=args.base)
    if args.ablations and toy is not None:
        (kind,) = args.motions
        return ablations.main(toy, ablations_scenes.WORLD, kind, chosen_recipe(kind, args), args)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    columns = ("motion", "followed", "overlap", "change")
    own = ("place", "pose", "period", "flow", "particles")
    table, motions = Table({"motion": 11, "seed": 5, "video": 8}, (*columns, *own), 10), {}
    firsts: list[list[Videos]] = []
    for kind in args.motions:
        seeds = {}
        for seed in range(args.seed, args.seed + args.seeds):
            cases = evaluation_cases(seed, kind, args.cases, args.frames)
            videos = run(toy, kind, seed, cases, args)
            if args.save_gif:
                save_gif(args.save_gif / f"{kind}_{seed}.gif", shown(videos))
                firsts.append([rows[:1] for rows in shown(videos)])
            figures = {name: measured(one, cases) for name, one in videos.items()}
            for name, row in figures.items():
                values = (row.get(column) for column in (*columns, *own))
                table.row(kind, str(seed), name, *values)
            seeds[seed] = {"pass": holds(figures), "figures": figures}
        motions[kind] = {"pass": all(one["pass"] for one in seeds.values()), "seeds": seeds}
    if args.save_gif:
        in_row = 4 if len(firsts) % 4 == 0 else len(firsts)
        parts = [firsts[start : start + in_row] for start in range(0, len(firsts), in_row)]
        rows = [np.concatenate(row) for part in parts for row in zip(*part, strict=True)]
        save_gif(args.save_gif / "motions.gif", rows)
    return finish({"pass": all(one["pass"] for one in motions.values()), "motions": motions})


if __name__ == "__main__":
    sys.exit(main())
