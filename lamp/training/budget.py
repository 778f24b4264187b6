"""A time budget in place of a number of steps (`TrainConfig.minutes`).

The first steps of a run are timed, and one validation, state and sample after them. Then the number
of steps is fixed to what fits, so that the learning rate schedule ends in time. A resumed run keeps
that number.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from ..plain import log
from .loop import Training
from .overhead import Overhead
from .recipe import MOST_STEPS, TrainConfig

TIMED_STEPS = 3
_FEW = 100  # steps; less teach hardly anything
_WARMUP_SHARE = 15


class Budget:
    """Plans the steps of a run once, if it has a time budget and no number of steps yet."""

    def __init__(self, training: Training) -> None:
        self._training, self._begun = training, time.perf_counter()
        self._due = training.step + TIMED_STEPS if training.unplanned else 0

    def is_due(self, step: int) -> bool:
        """Whether the run is planned after this step."""
        return step == self._due

    def plan(self, overhead: Overhead) -> str:
        """Fix the number of steps. Of several processes, the first decides for all.

        Returns:
            A warning if they are few.
        """
        training = self._training
        seconds = 60 * training.config.minutes - (time.perf_counter() - self._begun)
        steps = steps_that_fit(seconds, training.seconds_per_step, training.step, overhead)
        own = torch.tensor(float(steps if training.group.rank == 0 else 0), device=training.device)
        training.group.mean_([own])
        training.plan(planned(training.config, round(own.item() * training.group.count)))
        overhead.last = training.config.steps
        fit, minutes = training.config.steps, training.config.minutes
        log.info("LAMP: %d steps fit into %g minutes", fit, minutes)
        if fit >= _FEW:
            return ""
        return (
            f"There is time for only {fit} steps (minutes is {minutes:g}): set minutes higher, or "
            "choose smaller clips."
        )


def steps_that_fit(seconds: float, seconds_per_step: float, done: int, overhead: Overhead) -> int:
    """The number of steps of a run that has `seconds` left after step `done`; at least one more."""
    low, high = done + 1, MOST_STEPS
    while low < high:
        middle = (low + high + 1) // 2
        if (middle - done) * seconds_per_step + overhead.between(done, middle) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low


def planned(config: TrainConfig, steps: int) -> TrainConfig:
    """A run of `steps` steps, with a warmup of at most a fifteenth of them."""
    return replace(config, steps=steps, warmup=min(config.warmup, steps // _WARMUP_SHARE))
