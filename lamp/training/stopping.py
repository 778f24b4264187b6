"""When a motion is learned (`TrainConfig.patience`): by the loss on held-out clips and the samples.

A sample is compared with the training clips by two measures: the amount of motion (optical flow,
with OpenCV) and how far the picture moves away from frame 1. All measures are lower when better.

While the learning rate is high, every step still moves the motion about, and videos go on improving
after all measures have come to rest. A falling rate is therefore waited for (docs/toy_results.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..clips.clip_set import ClipSet
from ..metrics import motion_amount
from .recipe import TrainConfig, learning_rate_factor

HELD_OUT, MOTION, LIKENESS = "held_out_loss", "sample_motion", "sample_likeness"
_MARGIN = 0.025  # of the held-out loss: smaller improvements do not count
_SAMPLE_MARGIN = 0.15  # of the others, which are in powers of two
_SCALE = 0.05  # a difference of the held-out loss that weighs as much as one of 1 in the others
_LOW_RATE = 0.25  # of the highest rate
_CLIPS = 4  # clips that the samples are compared with
_COARSE = 8  # pixels, side of the cells in which colours are compared

Scores = Mapping[str, float]
"""Measure -> value."""


@dataclass(frozen=True)
class Measured:
    """The measures after a step."""

    step: int
    scores: Scores


def merged(
    validation: Sequence[tuple[int, float]], samples: Sequence[tuple[int, Scores]]
) -> list[Measured]:
    """All measures of a run, by step."""
    found: dict[int, dict[str, float]] = {}
    for step, loss in validation:
        found.setdefault(step, {})[HELD_OUT] = loss
    for step, scores in samples:
        found.setdefault(step, {}).update(scores)
    return [Measured(step, found[step]) for step in sorted(found)]


def stale(measured: Sequence[Measured]) -> int:
    """How many of the last measurements improved nothing."""
    best: dict[str, float] = {}
    count = 0
    for each in measured:
        improved = [name for name, value in each.scores.items() if _improves(name, value, best)]
        count = 0 if improved else count + 1
        best |= {name: each.scores[name] for name in improved}
    return count


def best_step(measured: Sequence[Measured]) -> int:
    """The step with the best measures taken together; the first of equal ones."""
    lowest: dict[str, float] = {}
    for each in measured:
        for name, value in each.scores.items():
            lowest[name] = min(value, lowest.get(name, math.inf))

    def cost(each: Measured) -> float:
        costs = (_distance(name, value, lowest[name]) for name, value in each.scores.items())
        return sum(costs) / max(len(each.scores), 1)

    return min(measured, key=cost).step


def settled(measured: Sequence[Measured], config: TrainConfig) -> list[Measured]:
    """The measurements since the rate has fallen to a quarter; all, if it does not fall."""
    if config.rate_schedule == "constant":
        return list(measured)
    after_warmup = [each for each in measured if each.step >= config.warmup]
    return [each for each in after_warmup if learning_rate_factor(each.step, config) <= _LOW_RATE]


def best_of_run(measured: Sequence[Measured], config: TrainConfig) -> int:
    """`best_step` of the settled measurements, or of all as long as there are none."""
    return best_step(settled(measured, config) or measured)


def lost_steps(measured: Sequence[Measured], kept: int, config: TrainConfig) -> set[int]:
    """The steps of a resumed run that were better than its best motion of step `kept` (0: it has
    none) and have no file: `patience` was off, or the run was stopped before it was written.

    If the run has yet to repeat the step of its best motion, there are none.
    """
    if not kept:
        return {each.step for each in measured}
    best = [each for each in measured if each.step == kept]
    if not best:
        return set()
    return {each.step for each in measured if best_of_run([*best, each], config) != kept}


def _improves(name: str, value: float, best: Mapping[str, float]) -> bool:
    if name not in best:
        return True
    margin = _MARGIN * abs(best[name]) if name == HELD_OUT else _SAMPLE_MARGIN
    return value < best[name] - margin


def _distance(name: str, value: float, lowest: float) -> float:
    if name == HELD_OUT:
        return (value - lowest) / max(_SCALE * abs(lowest), 1e-12)
    return value - lowest


class SampleScores:
    """Compares samples with the training clips, which are decoded at the first call."""

    def __init__(self, clips: ClipSet) -> None:
        self._clips = clips
        self._of_clips: tuple[float | None, float] | None = None

    def __call__(self, frames: Tensor) -> dict[str, float]:
        """Measures of a sample `f h w 3` in 0..1; without the motion if OpenCV is missing."""
        if self._of_clips is None:
            self._of_clips = self._measure_clips()
        motion, distance = self._of_clips
        scores = {LIKENESS: max(0.0, _octaves(distance_from_first(frames), distance))}
        found = motion_amount(frames)
        if motion is not None and found is not None:
            scores[MOTION] = abs(_octaves(found, motion))
        return scores

    def _measure_clips(self) -> tuple[float | None, float]:
        count = self._clips.settings.frames
        stride = self._clips.settings.stride
        numbers = range(0, count * stride, stride)
        windows = [
            self._clips.frames(clip, numbers).float() / 255
            for clip in range(min(len(self._clips), _CLIPS))
        ]
        motions = [motion_amount(window) for window in windows]
        known = [motion for motion in motions if motion is not None]
        mean = sum(known) / len(known) if known else None
        return mean, sum(map(distance_from_first, windows)) / len(windows)


def distance_from_first(frames: Tensor) -> float:
    """Mean absolute difference of frames 2.. `f h w 3` from frame 1, in coarse cells."""
    coarse = F.avg_pool2d(frames.movedim(-1, 1).float().cpu(), _COARSE, ceil_mode=True)
    return (coarse[1:] - coarse[:1]).abs().mean().item()


def _octaves(value: float, reference: float) -> float:
    """log2 of the ratio; both have a floor, so that still videos stay finite."""
    return math.log2(max(value, 1e-3) / max(reference, 1e-3))


class Stopping:
    """Ends a training that has learned its motion, and keeps its best motion.

    Args:
        keep_best: called when the last measurement is the best so far.
        lost: steps whose measurements do not count, see `lost_steps`.
    """

    def __init__(self, keep_best: Callable[[], object], lost: Collection[int] = ()) -> None:
        self._keep_best, self._lost = keep_best, lost

    def after(self, measured: Sequence[Measured], config: TrainConfig) -> bool:
        """Look at the measures so far; whether to stop, as `TrainConfig.patience` says."""
        measured = [each for each in measured if each.step not in self._lost]
        if not config.patience or not measured:
            return False
        if best_of_run(measured, config) == measured[-1].step:
            self._keep_best()
        return bool(settled(measured, config)) and stale(measured) >= config.patience
