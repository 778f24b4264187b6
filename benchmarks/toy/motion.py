"""Is the motion learned? Tunes on eight toy clips and measures on objects that they do not show.

    python -m benchmarks.motion --seed 3 --save-sheet sheet.png
    python -m benchmarks.motion --motions grow,rotate --seeds 3
    python -m benchmarks.motion --ablations --seeds 3

The whole method on the toy base (see lamp/toy): few-shot tuning, shared noise, the AdaIN schedule,
on 8 clips of 8 frames of a motion, 'moves right' unless others are named. Two sets of unseen
objects, and beside them what must fail: the model before tuning, and a static video. Prints a
table and, last, one line of JSON. Exit status 0 only if every mark holds. The ablations of the
paper are in benchmarks/toy/ablations.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamp.clips.load import clips_from_images
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.toy import score
from lamp.toy.base import PATH, ToyBase, load_toy_base
from lamp.toy.cases import Case, Clips, evaluation_cases, training_clips
from lamp.toy.motions import MOTIONS
from lamp.toy.world import FRAMES
from lamp.training.latents import LatentClips, cache_latents
from lamp.training.loop import StepReport, Training
from lamp.training.recipe import TrainConfig, preset

SETS = ("combination", "hard")
FIRST = "moves_right"
COLUMNS = tuple("iou worst nrmse gain area kept ground followed appearance".split())
Figures = dict[str, dict[str, dict[str, float]]]  # set -> model -> measure


@dataclass(frozen=True)
class Recipe:
    """Tuning (a preset of the trainer) and sampling; the method's own constants are not here."""

    preset: str = "fast"
    steps: int = 240
    clips_per_step: int = 2
    sample_steps: int = 20
    guidance: float = 1.0
    # The paper's 0.2 lost more objects here (seed 21: 13 of 16 followed, with 0.35 15 of 16).
    alpha: float = 0.35
    adain: str = "paper"
    switch: float = 0.6  # this and the strengths: of the schedule 'custom'
    first_strength: float = 1.0
    second_strength: float = 1.0
    groupnorm: str = "pooled"
    rank: int = 0
    prompts: str = "caption"  # or 'motion': one prompt for all clips
    fade: float = 0.0  # see lamp.toy.cases.training_clips

    @property
    def schedule(self) -> AdaINSchedule:
        return AdaINSchedule(self.adain, self.switch, self.first_strength, self.second_strength)


RECIPES = {
    # Fewer steps of sampling cost little here (0.005 overlap), more of tuning bring more.
    "moves_right": Recipe(sample_steps=15),
    "rotate": Recipe(steps=500),
    # AdaIN to frame 1 holds a growing object's share of the picture: it fades instead.
    "grow": Recipe(steps=300, adain="off"),
    "bounce": Recipe(steps=1000),
    "wave": Recipe(steps=1000),
    "two_objects": Recipe(steps=1000),
}
# By set: the mean overlap and the share followed must reach their marks, the median path error must
# stay below its own. A still video has an error of 1 and is never followed. A shape that no clip
# shows is not turned, so 'rotate' has no mark there. Of 'wave', some clips teach a path whose error
# is about 0.35, the bound of 'followed': its share swings between 0.4 and 1 there.
MARKS: dict[str, dict[str, dict[str, float]]] = {
    "moves_right": {
        "combination": {"iou": 0.65, "nrmse": 0.15, "followed": 0.85},
        "hard": {"iou": 0.40},
    },
    "rotate": {"combination": {"iou": 0.80, "nrmse": 0.35, "followed": 0.65}},
    "grow": {
        "combination": {"iou": 0.75, "nrmse": 0.35, "followed": 0.75},
        "hard": {"iou": 0.60, "nrmse": 0.45},
    },
    "bounce": {
        "combination": {"iou": 0.55, "nrmse": 0.35, "followed": 0.65},
        "hard": {"iou": 0.40, "nrmse": 0.45},
    },
    "wave": {
        "combination": {"iou": 0.55, "nrmse": 0.40, "followed": 0.40},
        "hard": {"iou": 0.40, "nrmse": 0.45},
    },
    "two_objects": {
        "combination": {"iou": 0.50, "nrmse": 0.35, "followed": 0.60},
        "hard": {"iou": 0.40, "nrmse": 0.45},
    },
}


def latent_clips(toy: ToyBase, clips: Clips, prompts: str) -> LatentClips:
    """The project's own cache of training clips, fed from the toy world."""
    images = [torch.from_numpy(frames).float() / 255.0 for frames in clips.frames]
    texts = [clips.motion] * len(images)
    if prompts == "caption":
        texts = [f"{text} {clips.motion}" for text in clips.captions]
    frames, height, width = clips.frames.shape[1:4]
    chosen = clips_from_images(images, texts, frames, width, height)

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            posterior = toy.vae.encode(pixels.permute(0, 3, 1, 2) * 2.0 - 1.0).latent_dist
        return posterior.mean, posterior.std

    def embed(prompts: list[str]) -> dict[str, Tensor]:
        return {text: toy.encode_text([text]) for text in prompts}

    return cache_latents(chosen, encode, embed)


def fresh_motion(toy: ToyBase, seed: int) -> Motion:
    return Motion(map_unet(toy.unet)).initialise(seed)


def train_config(recipe: Recipe, seed: int) -> TrainConfig:
    return TrainConfig(
        steps=recipe.steps,
        frames=FRAMES,
        batch=recipe.clips_per_step,
        seed=seed,
        rank=recipe.rank,
        **{**preset(recipe.preset, recipe.steps), "groupnorm": recipe.groupnorm},
    )


def tune(toy: ToyBase, recipe: Recipe, seed: int, kind: str = FIRST, quiet: bool = False) -> Motion:
    """A motion learned from the eight clips of this kind and seed."""
    return trained(toy, recipe, seed, kind, quiet).motion.requires_grad_(False)


def trained(toy: ToyBase, recipe: Recipe, seed: int, kind: str, quiet: bool) -> Training:
    """See `tune`; the finished run with all that it knows."""
    clips = latent_clips(toy, training_clips(seed, kind, fade=recipe.fade), recipe.prompts)
    motion, config = fresh_motion(toy, seed), train_config(recipe, seed)
    training = Training(DiffusersHost(toy.unet), motion, clips, config)

    def show(report: StepReport) -> None:
        if not quiet and report.step % 50 == 0:
            print(f"  step {report.step}/{report.steps} loss {report.loss:.4f}", flush=True)

    training.run(show)
    training.finish()
    return training


def render(
    toy: ToyBase, motion: Motion, cases: list[Case], recipe: Recipe, seed: int, batch: int = 4
) -> NDArray[np.uint8]:
    """Videos (n, f, h, w, 3) of the cases, from their first frames and prompts."""
    videos = []
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        latents = draw_latents(toy, motion, part, recipe, seed + start)
        decoded = (toy.decode(latents) * 255.0).round().to(torch.uint8).numpy()
        decoded = decoded.reshape(len(part), -1, *decoded.shape[1:])
        decoded[:, 0] = np.stack([case.first_frame for case in part])
        videos.append(decoded)
    return np.concatenate(videos)


def draw_latents(
    toy: ToyBase, motion: Motion, cases: list[Case], recipe: Recipe, seed: int
) -> Tensor:
    """Latents `(b f) c h w` of the cases as one batch."""
    first = toy.encode(np.stack([case.first_frame for case in cases]))
    frames = len(cases[0].frames)
    noise = draw_noise(frames, *first.shape[1:], seed=seed, videos=len(cases))
    return sample(
        DiffusersHost(toy.unet),
        motion,
        first,
        share_noise(noise, recipe.alpha, frames),
        toy.encode_text([case.prompt for case in cases]),
        toy.encode_text([""] * len(cases)) if recipe.guidance != 1.0 else None,
        steps=recipe.sample_steps,
        guidance=recipe.guidance,
        schedule=recipe.schedule,
        groupnorm=recipe.groupnorm,
    )


def measure(videos: NDArray[np.uint8], cases: list[Case]) -> dict[str, float]:
    pairs = zip(videos, cases, strict=True)
    return score.summarise([score.score_clip(video, case) for video, case in pairs])


def reaches(figures: dict[str, float], marks: dict[str, float]) -> bool:
    """nRMSE must stay below its mark, everything else above."""
    return all(
        figures[name] <= mark if name == "nrmse" else figures[name] >= mark
        for name, mark in marks.items()
    )


def save_sheet(path: Path, videos: NDArray[np.uint8], cases: list[Case], zoom: int = 3) -> None:
    """One row a case: generated frames, then the true last frame."""
    from PIL import Image

    rows = [
        np.concatenate([*video, case.frames[-1]], axis=1)
        for video, case in zip(videos, cases, strict=True)
    ]
    sheet = np.concatenate(rows, axis=0)
    size = (sheet.shape[1] * zoom, sheet.shape[0] * zoom)
    Image.fromarray(sheet).resize(size, Image.Resampling.NEAREST).save(path)


def run(
    toy: ToyBase, kind: str, seed: int, recipe: Recipe, args: argparse.Namespace
) -> dict[str, Any]:
    """One motion and seed: learned, tested on both sets, beside what must fail."""
    started = time.perf_counter()
    motion = tune(toy, recipe, seed, kind)
    tuned = time.perf_counter()
    figures: Figures = {}
    sheet_videos, sheet_cases = [], []
    for which in SETS:
        cases = evaluation_cases(seed, which, kind, count=args.cases)
        few = cases[: args.untuned_cases]
        videos = render(toy, motion, cases, recipe, seed)
        still = np.stack([score.static_video(case) for case in cases])
        before = render(toy, fresh_motion(toy, seed), few, recipe, seed)
        figures[which] = {
            "tuned": measure(videos, cases),
            "untuned": measure(before, few),
            "static": measure(still, cases),
        }
        sheet_videos.append(videos)
        sheet_cases += cases
    if args.save_sheet:
        save_sheet(sheet_path(args, kind, seed), np.concatenate(sheet_videos), sheet_cases)
    return {
        "motion": kind,
        "seed": seed,
        "figures": figures,
        "marks": MARKS[kind],
        "pass": passes(figures, MARKS[kind]),
        "tuning_seconds": round(tuned - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def passes(figures: Figures, marks: dict[str, dict[str, float]]) -> bool:
    """The tuned model reaches all marks of each set, and nothing else does."""
    return all(
        reaches(row, marks[which]) == (model == "tuned")
        for which in marks
        for model, row in figures[which].items()
    )


def sheet_path(args: argparse.Namespace, kind: str, seed: int) -> Path:
    """The path given; of several runs each has its motion and seed in the name."""
    path: Path = args.save_sheet
    if len(args.motions) * args.seeds == 1:
        return path
    return path.with_name(f"{path.stem}_{kind}_{seed}{path.suffix}")


def print_rows(result: dict[str, Any]) -> None:
    for which, models in result["figures"].items():
        for model, row in models.items():
            values = " ".join(f"{row[name]:>10.3f}" for name in COLUMNS)
            print(f"{result['motion']:<12} {result['seed']:>5} {which:<12} {model:<8} {values}")
    verdict = "learned" if result["pass"] else "NOT learned"
    print(f"{result['motion']:<12} {result['seed']:>5} {verdict}, {result['seconds']:.0f} s")


def print_head() -> None:
    names = " ".join(f"{name:>10}" for name in COLUMNS)
    print(f"{'motion':<12} {'seed':>5} {'set':<12} {'model':<8} {names}")


def spreads(results: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Set -> measure -> lowest and highest figure of the tuned models over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for which in SETS:
        rows = [result["figures"][which]["tuned"] for result in results]
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        found[which] = {name: [min(values), max(values)] for name, values in columns.items()}
    return found


def summary(results: list[dict[str, Any]], recipes: dict[str, Recipe]) -> dict[str, Any]:
    """One run as it is; of several, each motion with its recipe, spreads and seeds."""
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


def motion_names(text: str) -> list[str]:
    names = list(MOTIONS) if text == "all" else text.split(",")
    for name in names:
        if name not in MOTIONS:
            raise argparse.ArgumentTypeError(
                f"no motion '{name}': choose all, or of {', '.join(MOTIONS)}"
            )
    return names


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.motion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--motions", type=motion_names, default=[FIRST], help="all, or names with commas"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--seeds", type=positive, default=1, help="how many, one after the other")
    recipe = parser.add_argument_group("instead of what a motion's own recipe says")
    for name, kind in Recipe.__annotations__.items():
        value = {"int": int, "float": float, "str": str}[kind]
        known = ("caption", "motion") if name == "prompts" else None
        recipe.add_argument(f"--{name.replace('_', '-')}", type=value, choices=known)
    parser.add_argument("--cases", type=int, default=16, help="unseen objects per set")
    parser.add_argument("--untuned-cases", type=int, default=2)
    parser.add_argument("--base", type=Path, default=PATH)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-sheet", type=Path)
    ablations = parser.add_argument_group("the paper's ablations, of one motion")
    ablations.add_argument("--ablations", action="store_true")
    ablations.add_argument(
        "--keep", type=Path, help="folder of what is done, so that a stopped run goes on"
    )
    ablations.add_argument("--save-plot", type=Path, help="an SVG file")
    args = parser.parse_args(arguments)
    if args.ablations and len(args.motions) > 1:
        parser.error("the ablations take one motion")
    return args


def chosen_recipes(args: argparse.Namespace) -> dict[str, Recipe]:
    given = {name: getattr(args, name) for name in Recipe.__annotations__}
    changes = {name: value for name, value in given.items() if value is not None}
    return {kind: replace(RECIPES[kind], **changes) for kind in args.motions}


def main() -> int:
    args = parse()
    torch.set_num_threads(args.threads)
    toy, recipes, results = load_toy_base(path=args.base), chosen_recipes(args), []
    if args.ablations:
        from .ablations import main as compare  # which is built of what this module has

        (kind,) = args.motions
        return compare(toy, kind, recipes[kind], args)
    for kind, recipe in recipes.items():
        for seed in range(args.seed, args.seed + args.seeds):
            result = run(toy, kind, seed, recipe, args)
            if not results:
                print_head()
            print_rows(result)
            results.append(result)
    final = summary(results, recipes)
    print(json.dumps(final))
    return 0 if final["pass"] else 1


if __name__ == "__main__":
    sys.exit(main())
