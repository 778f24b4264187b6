"""Settings with which a run fits into the memory there is, the least harmful first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..recipe import PRECISIONS
from .estimate import Estimating, MemoryEstimate, MemoryPlan, OutOfMemoryPlanError, gigabytes

SUGGESTIONS = 3
_LATENT_STEP = 8  # 64 pixels in SD 1.x: every level of the UNet halves evenly
_RANK = 64  # a twentieth of what SD 1.x learns

Changes = dict[str, Any]


@dataclass(frozen=True)
class Suggestion:
    """Settings to change in a plan, and what the run then needs."""

    changes: Changes
    estimate: MemoryEstimate

    def sentence(self) -> str:
        """such as `checkpointing on (7.3 GB)`."""
        words = [word for name in self.changes if (word := _word(name, self))]
        named = " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
        return f"{named} ({gigabytes(self.estimate.total)})"


def refuse(estimator: Estimating, plan: MemoryPlan, available: int) -> None:
    """Stop a run that cannot fit before its first step.

    Args:
        available: bytes that the run may take in all, those of a loaded model included.

    Raises:
        OutOfMemoryPlanError: it cannot fit; the sentence names three settings with which it does.
    """
    estimate = estimator(plan)
    plan, needed = estimate.plan, estimate.total
    if needed <= available:
        return
    beginning = (
        f"Training on {plan.describe()} needs about {gigabytes(needed)} of memory, and "
        f"{gigabytes(available)} are free."
    )
    found = fit(estimator, plan, available)
    if found:
        choices = "; or with ".join(suggestion.sentence() for suggestion in found)
        raise OutOfMemoryPlanError(f"{beginning} It fits with {choices}.")
    *_, leanest = _candidates(plan)
    least = estimator(replace(plan, **leanest)).total
    raise OutOfMemoryPlanError(
        f"{beginning} Even the smallest settings need {gigabytes(least)}: close other programs "
        "that use the device, or train on one with more memory."
    )


def fit(estimator: Estimating, plan: MemoryPlan, available: int) -> list[Suggestion]:
    """Three changes of settings with which the run fits, those that hurt least first.

    None of them does more than another one that fits already, unless there are no three such.
    Fewer than three come back only if there are no more.

    Args:
        available: bytes that the run may take in all, those of a loaded model included.
    """
    plan = estimator(plan).plan
    found: list[Suggestion] = []
    spare: list[Changes] = []
    guess = _Guess(estimator, plan)
    for changes in _candidates(plan):
        if any(_is_leaner(plan, changes, known.changes) for known in found):
            spare.append(changes)
        elif (estimate := guess.fitting(changes, available)) is not None:
            found.append(Suggestion(changes, estimate))
        if len(found) == SUGGESTIONS:
            return found
    for changes in spare[: SUGGESTIONS - len(found)]:
        found.append(Suggestion(changes, estimator(replace(plan, **changes))))
    return found


class _Guess:
    """Spares most of the passes: activations grow at most in proportion to the latents' size, so
    that one pass at full size tells which smaller ones cannot fit."""

    def __init__(self, estimator: Estimating, plan: MemoryPlan) -> None:
        self._estimator, self._plan = estimator, plan

    def fitting(self, changes: Changes, available: int) -> MemoryEstimate | None:
        """The estimate for changed settings if they fit."""
        plan = replace(self._plan, **changes)
        size = {name: getattr(self._plan, name) for name in ("frames", "height", "width")}
        full = self._estimator(replace(plan, **size))
        share = _positions(plan) / _positions(full.plan)
        least = full.total - full.activations - full.gradients + full.activations * share
        if least > available:
            return None
        estimate = self._estimator(plan)
        return estimate if estimate.total <= available else None


def _positions(plan: MemoryPlan) -> int:
    return plan.frames * plan.height * plan.width


def _candidates(plan: MemoryPlan) -> Iterator[Changes]:
    """All combinations of changes, the least harmful first; the last one is the leanest."""
    options = [[(0.0, {}), *changes] for changes in _levers(plan)]
    combined = []
    for choice in itertools.product(*options):
        changes: Changes = {}
        for _, part in choice:
            changes |= part
        combined.append((sum(harm for harm, _ in choice), changes))
    combined.sort(key=lambda pair: pair[0])
    return (changes for _, changes in combined if changes)


def _levers(plan: MemoryPlan) -> Iterator[list[tuple[float, Changes]]]:
    """What can be changed, each with the harm it does: more time, then less exact sums; a smaller
    video or a motion of low rank only where these are not enough, and a shorter video at last."""
    if not plan.gradient_checkpointing:
        yield [(1.0, {"gradient_checkpointing": True})]
    clips = plan.accumulate * plan.batch
    if clips > 1:
        # The same clips in a step, one after the other, keep the gradients meanwhile; one does not.
        in_turn = [(1.2, {"batch": 1, "accumulate": clips})] if plan.batch > 1 else []
        fewer = {"batch": 1, "accumulate": 1}
        yield [*in_turn, (4.0, {k: v for k, v in fewer.items() if getattr(plan, k) != v})]
    if plan.device == "cuda":
        low = "bf16" if plan.precision == "fp32" else plan.precision
        if plan.precision == "fp32" or plan.weights_dtype == torch.float32:
            yield [(1.5, {"precision": low, "weights_dtype": PRECISIONS[low]})]
        if plan.optimizer == "adamw":
            yield [(2.0, {"optimizer": "adamw8bit"})]
    if plan.ema:
        yield [(2.5, {"ema": False})]
    yield [(12.0 + 2 * i, size) for i, size in enumerate(_smaller_sizes(plan))]
    if not plan.rank:
        yield [(13.0, {"rank": _RANK})]
    yield [(15.0 + 2 * i, {"frames": frames}) for i, frames in enumerate(_fewer_frames(plan))]


def _smaller_sizes(plan: MemoryPlan) -> Iterator[Changes]:
    """Sizes below the plan's, of nearly its aspect, in steps of 64 pixels of the shorter side."""
    short, long = sorted((plan.height, plan.width))
    upright = plan.height > plan.width
    for side in range((short - 1) // _LATENT_STEP * _LATENT_STEP, 0, -_LATENT_STEP):
        other = max(round(side * long / short / _LATENT_STEP) * _LATENT_STEP, side)
        yield {"height": other if upright else side, "width": side if upright else other}


def _fewer_frames(plan: MemoryPlan) -> Iterator[int]:
    for share in (0.75, 0.5, 0.25):
        frames = int(plan.frames * share)
        if frames >= 2:
            yield frames


def _is_leaner(plan: MemoryPlan, changes: Changes, known: Changes) -> bool:
    """Whether `changes` does all that `known` does, and perhaps more."""
    ours, theirs = replace(plan, **changes), replace(plan, **known)
    sizes = ("frames", "height", "width", "accumulate")
    others = [f.name for f in fields(plan) if f.name not in sizes and f.name in known]
    return all(getattr(ours, name) <= getattr(theirs, name) for name in sizes) and all(
        getattr(ours, name) == getattr(theirs, name) for name in others
    )


def _word(name: str, suggestion: Suggestion) -> str:
    plan, value = suggestion.estimate.plan, suggestion.changes[name]
    if name == "gradient_checkpointing":
        return "checkpointing on"
    if name == "accumulate":
        return f"accumulate {value}"
    if name == "precision":
        return f"precision {value}"
    if name == "weights_dtype":
        return f"the model loaded in {plan.precision}"
    if name == "optimizer":
        return f"optimizer {value}"
    if name == "ema":
        return "ema off"
    if name == "height":
        return f"clips of {plan.width * plan.pixels} x {plan.height * plan.pixels} pixels"
    if name == "width":
        return ""  # told with the height
    return f"{name} {value}"
