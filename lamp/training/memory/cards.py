"""Settings that fit a graphics card, chosen by the memory estimate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ...clips.settings import ClipSettings
from ...errors import LampError
from ..optimizers import installed_optimizers
from ..state import TrainingState, begun_with
from .estimate import GB, Estimating, MemoryEstimate, MemoryPlan, gigabytes
from .plan import check_fit, suggest

CHOSEN = ("batch", "optimizer", "update", "rank", "gradient_checkpointing")
"""The settings of a training that a card decides, besides the clips' frames, width and height."""
_OF_CLIPS = ("frames", "height", "width")

_RESERVED = 1.0  # GB that the desktop, the browser and CUDA itself take from a card
_SHARE = 0.95  # of the free memory


@dataclass(frozen=True)
class CardSettings:
    """The settings for a card.

    - ``card``: its choice, such as `8 GB`; ``estimate``: of a run with these settings;
    - ``fixed``: names of settings that were set by hand;
    - ``estimated``: whether the estimate is of these settings, see `as_begun`.
    """

    card: str
    estimate: MemoryEstimate
    fixed: frozenset[str] = frozenset()
    estimated: bool = True

    @property
    def training(self) -> dict[str, Any]:
        """Settings of `TrainConfig`."""
        return {name: getattr(self.estimate.plan, name) for name in CHOSEN}

    @property
    def checkpointing(self) -> str:
        """`on`, `off`, or `auto` if the trainer has to see what fits."""
        if not self.estimated and "gradient_checkpointing" not in self.fixed:
            return "auto"
        return "on" if self.estimate.plan.gradient_checkpointing else "off"

    @property
    def clips(self) -> dict[str, int]:
        """Settings of the clips, in frames and pixels."""
        plan = self.estimate.plan
        size = {"width": plan.width * plan.pixels, "height": plan.height * plan.pixels}
        return {"frames": plan.frames, **size}

    def differs_from(self, clips: ClipSettings) -> str:
        """What to do if the clips were read with other settings; empty if they were not."""
        given = {name: getattr(clips, name) for name in self.clips}
        if given == self.clips:
            return ""
        wanted = ", ".join(f"{name} {value}" for name, value in self.clips.items())
        found = ", ".join(f"{name} {value}" for name, value in given.items())
        return f"the preset is for clips with {wanted}, but these have {found}: connect its outputs"

    def as_begun(self, state: TrainingState | None, processes: int = 1) -> tuple[CardSettings, str]:
        """The same for a run that goes on from a state, which keeps what was chosen when it began,
        and what to tell: since then the free memory may have changed, and so the choice.

        Raises:
            LampError: the state is damaged.
        """
        chosen = self.training
        names = [name for name in CHOSEN if name not in self.fixed]
        begun = {} if state is None else begun_with(state, names, processes)
        kept = {name: value for name, value in begun.items() if value != chosen[name]}
        try:
            plan = replace(self.estimate.plan, **kept)
        except LampError:  # not with what was set by hand: the run is refused by name
            return self, ""
        if not kept:
            return self, ""
        then = ", ".join(f"{name} {value}" for name, value in kept.items())
        now = ", ".join(f"{name} {chosen[name]}" for name in kept)
        return (
            replace(self, estimate=replace(self.estimate, plan=plan), estimated=False),
            f"The training goes on as it began, with {then}. The preset would choose {now} now.",
        )

    def describe(self) -> str:
        """Card, settings and estimate in words."""
        return f"Card {self.card}: {self.estimate.describe()}"

    def record(self) -> str:
        """JSON for the header of the motion file."""
        return json.dumps({"card": self.card, **self.clips, **self.training})


def available_memory(card: str, free: int) -> int:
    """Bytes for a run on a card, the image model included.

    Args:
        card: `8 GB`, or `auto` for `free` bytes.
    """
    if card == "auto":
        return int(_SHARE * free)
    return int((float(card.removesuffix(" GB")) - _RESERVED) * GB)


def settings_for(
    card: str, estimator: Estimating, plan: MemoryPlan, free: int, fixed: Mapping[str, Any]
) -> CardSettings:
    """The settings that harm the result least and fit the card.

    Args:
        plan: with the settings to use if there is enough memory.
        free: see `available_memory`.
        fixed: fields of the plan that were set by hand, and stay.

    Raises:
        OutOfMemoryPlanError: none fit.
    """
    available, installed = available_memory(card, free), installed_optimizers()
    estimate = estimator(replace(plan, **fixed))
    wanted = estimate.plan
    kept = {each.name for each in fields(wanted)} - {*CHOSEN, *_OF_CLIPS} | {*fixed}

    def allowed(changed: MemoryPlan) -> bool:
        same = all(getattr(changed, name) == getattr(wanted, name) for name in kept)
        return same and changed.optimizer in {*installed, wanted.optimizer}

    if estimate.total > available:
        found = suggest(estimator, wanted, available, allowed, most=1)
        if not found:
            check_fit(estimator, wanted, available)
        estimate = found[0].estimate
    name = card if card != "auto" else f"auto, {gigabytes(free)} free"
    return CardSettings(name, estimate, frozenset(fixed))
