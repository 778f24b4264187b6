"""The goals for memory and kernels, as ratios to a guided call of the image model alone."""

from __future__ import annotations

from dataclasses import dataclass

from .cards import CARDS
from .runs import CALL, EIGHT_BIT, EIGHT_BIT_FP8, IMAGE_CALL, STEP, UNCHECKPOINTED, Runs


@dataclass(frozen=True)
class Goal:
    """A measured ratio, and what it should be at most."""

    name: str
    ratio: float
    goal: float


def reached(goal: Goal) -> bool:
    """Whether a goal is reached, to the two decimals in which it is written."""
    return round(goal.ratio, 2) <= goal.goal


def goals(runs: Runs) -> list[Goal]:
    """All goals. A guided call of the image model takes 2.87 GiB, 3.08 reserved."""
    plain, lamp = runs.plain, runs.lamp
    found = [
        Goal("kernels of a guided call", len(lamp.kernels) / len(plain.kernels), 1.60),
        Goal("bytes moved by a guided call", lamp.moved / plain.moved, 1.19),
    ]
    for card, goal in zip(CARDS, (1.20, 1.18, 1.18), strict=True):
        ratio = card.seconds(lamp.kernels) / card.seconds(plain.kernels)
        found.append(Goal(f"time of a guided call, {card.name}", ratio, goal))
    for name, run, goal in ((CALL, lamp, 1.19), (IMAGE_CALL, runs.traced[IMAGE_CALL], 0.95)):
        found.append(Goal(f"memory, {name}", run.allocated / plain.allocated, goal))
    for card, goal in zip(CARDS[1:], (2.34, 2.24), strict=True):
        ratio = card.seconds(runs.traced[STEP].kernels) / card.seconds(plain.kernels)
        found.append(Goal(f"time of a training step, {card.name}", ratio, goal))
    allocated = {STEP: 2.27, EIGHT_BIT: 1.78, EIGHT_BIT_FP8: 1.50, UNCHECKPOINTED: 5.34}
    reserved = {STEP: 2.25, EIGHT_BIT: 1.79, EIGHT_BIT_FP8: 1.53}
    for name, step in runs.steps.items():
        if name in allocated:
            ratio = step.allocated / plain.allocated
            found.append(Goal(f"memory, {name}", ratio, allocated[name]))
        if name in reserved:
            ratio = step.total / plain.reserved
            found.append(Goal(f"reserved memory, {name}", ratio, reserved[name]))
    return found
