"""Does a training with `patience` stop when its motion is learned?

    python -m benchmarks.toy.stopping --motions all --seeds 3 --keep build/stopping

Trains on eight clips of the toy world to the last step, with a ninth clip held out, and measures it
twenty times as a training with `patience` does. Asks the rule after each measurement whether it
would have stopped. From two fifths of the steps on, the overlap with unseen objects is measured too
(combination set, no motion guidance).

- needed: the first measured step from which the overlap stays within 2 % of the final one, about
  what it varies at low rates. stops: where the rule stops.
- overlap: at the stop, as a share of the final one. gain: the same of the gain over a still video.

Prints a table, and last one line of JSON. Exit status 0 only if every training stops within a
quarter of the needed steps, with at least 95 % of its final overlap.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import Table, finish, parser
from lamp.files.atomic import write_file
from lamp.toy import score
from lamp.toy.base import ToyBase, load_toy_base
from lamp.toy.cases import Clips, evaluation_cases, training_clips
from lamp.toy.motions import MOTIONS
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig, preset
from lamp.training.samples import sample_clip
from lamp.training.stopping import Measured, SampleScores, Scores, Stopping, merged
from lamp.training.validation import split_clips

from .runs import (
    FIRST,
    RECIPES,
    Recipe,
    Sampler,
    measure,
    motion_names,
    pictures,
    positive,
    start_training,
)

PATIENCE, MEASUREMENTS, FROM = 3, 20, 8
FINAL = 0.98  # of the final overlap
MOST_OFF, LEAST_SHARE = 0.25, 0.95
CLIPS = 8
OTHER_SEED = 10_000  # of the ninth clip: the seeds of other runs are below


@dataclass(frozen=True)
class Curve:
    """A training's measures, and the overlap of unseen objects, by step.

    Attributes:
        still: the overlap of still videos.
    """

    steps: int
    still: float
    overlap: dict[int, float]
    scores: Mapping[int, Scores]

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Curve:
        """From JSON, whose keys are strings."""
        by_step = {
            name: {int(step): value for step, value in stored[name].items()}
            for name in ("overlap", "scores")
        }
        return cls(stored["steps"], stored["still"], **by_step)

    @property
    def measured(self) -> list[Measured]:
        return [Measured(step, scores) for step, scores in self.scores.items()]

    def share(self, step: int, of: float = 0.0) -> float:
        """Of the final overlap above `of`; between measured steps by interpolation."""
        values = np.array(list(self.overlap.values())) - of
        return float(np.interp(step, list(self.overlap), values) / values[-1])

    @property
    def needed(self) -> int:
        """The first measured step from which the overlap stays near the final one."""
        steps = list(self.overlap)
        low = [i for i, step in enumerate(steps) if self.share(step) < FINAL]
        return steps[low[-1] + 1] if low else steps[0]


def with_held_out(kind: str, seed: int) -> Clips:
    """The eight clips of a seed, and a ninth where a training with `hold_out` 1 holds it out."""
    own, other = training_clips(seed, kind), training_clips(seed + OTHER_SEED, kind)
    _, (place,) = split_clips(CLIPS + 1, 1, seed)
    frames = np.insert(own.frames, place, other.frames[0], axis=0)
    captions = [*own.captions[:place], other.captions[0], *own.captions[place:]]
    return Clips(frames, captions, own.motion)


def settings(recipe: Recipe) -> dict[str, Any]:
    """The preset `fast` with a held-out clip and `patience`."""
    return preset("fast", recipe.steps) | {"hold_out": 1, "patience": PATIENCE}


def curve(toy: ToyBase, kind: str, seed: int, recipe: Recipe, cases: int) -> Curve:
    """Train to the last step and measure on the way."""
    clips = with_held_out(kind, seed)
    training = start_training(toy, recipe, seed, kind, settings=settings(recipe), clips=clips)
    unseen = evaluation_cases(seed, "combination", kind, count=cases)
    still = np.stack([score.static_video(case) for case in unseen])
    sample_scores, every = SampleScores(training.clips.clips), recipe.steps // MEASUREMENTS
    overlap: dict[int, float] = {}

    def after_step(report: object) -> None:
        step = training.step
        if step % every:
            return
        training.validate()
        training.sample_scores.append((step, sample_scores(sample(toy, training, recipe))))
        if step >= FROM * every:
            videos = Sampler(toy, training.motion, recipe, seed).videos(unseen)
            overlap[step] = round(measure(videos, unseen)["iou"], 4)

    training.run(after_step)
    measured = merged(training.validation, training.sample_scores)
    scores = {one.step: {name: round(v, 5) for name, v in one.scores.items()} for one in measured}
    return Curve(recipe.steps, round(measure(still, unseen)["iou"], 4), overlap, scores)


def sample(toy: ToyBase, training: Training, recipe: Recipe) -> torch.Tensor:
    """Frames `f h w 3` in 0..1 of the sample that the trainer would draw."""
    clips = training.clips
    first = clips.posteriors[0].mean[0] * clips.scale
    text, steps = clips.text[clips.clips.captions[0]], recipe.sample_steps
    latents = sample_clip(training, first, text, steps=steps, schedule=recipe.schedule)
    return torch.from_numpy(pictures(toy, latents)).float() / 255.0


def stops_at(curve: Curve, config: TrainConfig) -> int:
    """The step after which the rule ends the training."""
    stopping, measured = Stopping(lambda: None), curve.measured
    for count, each in enumerate(measured, start=1):
        if stopping.after(measured[:count], config):
            return each.step
    return curve.steps


def figures(curve: Curve, recipe: Recipe) -> dict[str, float]:
    """Where the rule stops, and what it then has; see the module's docstring."""
    stops = stops_at(curve, TrainConfig(steps=curve.steps, **settings(recipe)))
    return {
        "needed": curve.needed,
        "stops": stops,
        "stops / needed": round(stops / curve.needed, 3),
        "overlap": round(curve.share(stops), 3),
        "gain": round(curve.share(stops, of=curve.still), 3),
    }


def holds(figures: dict[str, float]) -> bool:
    near = abs(figures["stops / needed"] - 1.0) <= MOST_OFF
    return near and figures["overlap"] >= LEAST_SHARE


def kept_curve(path: Path | None, make: Callable[..., Curve], *given: Any) -> Curve:
    """The curve in a file, or else made and stored there."""
    if path is not None and path.is_file():
        return Curve.of(json.loads(path.read_text(encoding="utf-8")))
    made = make(*given)
    if path is not None:
        text = json.dumps(asdict(made))
        write_file(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return made


def main(arguments: list[str] | None = None) -> int:
    command = parser("toy.stopping", __doc__)
    add = command.add_argument
    add("--motions", type=motion_names(MOTIONS), default=[FIRST], help="all, or names with commas")
    add("--seed", type=int, default=0, help="the first seed")
    add("--seeds", type=positive, default=1)
    add("--cases", type=positive, default=8, help="unseen objects")
    add("--steps", type=positive, help="in place of each motion's own number")
    add("--sample-steps", type=positive, default=10)
    add("--keep", type=Path, help="folder of curves, each measured once")
    args = command.parse_args(arguments)
    if args.steps and args.steps % MEASUREMENTS:
        command.error(f"--steps must be a multiple of {MEASUREMENTS}")
    torch.set_num_threads(1)
    toy, rows = load_toy_base(), []
    names = ("needed", "stops", "stops / needed", "overlap", "gain")
    table = Table({"motion": 12, "seed": 5}, names, 16)
    for kind in args.motions:
        recipe = replace(RECIPES[kind], sample_steps=args.sample_steps, motion_guidance=1.0)
        recipe = replace(recipe, steps=args.steps) if args.steps else recipe
        for seed in range(args.seed, args.seed + args.seeds):
            keep = args.keep and args.keep / f"{kind}_{seed}_{recipe.steps}.json"
            found = kept_curve(keep, curve, toy, kind, seed, recipe, args.cases)
            row = figures(found, recipe)
            table.row(kind, str(seed), *row.values())
            rows.append({"motion": kind, "seed": seed, "pass": holds(row), **row})
    return finish({"pass": all(row["pass"] for row in rows), "runs": rows})


if __name__ == "__main__":
    sys.exit(main())
