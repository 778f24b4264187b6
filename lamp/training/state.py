"""The state of a training run in one file. A resumed run continues exactly.

A safetensors file with `motion.NAME`, `optimizer.NUMBER.KEY`, `average.NUMBER`, `encoding.NAME`
(samples of what VAE and text encoder gave), `random` (the generator's state before the next step)
and `losses`; everything else is JSON in its header. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from ..errors import LampError
from ..files.atomic import write_advice, write_file
from ..files.header import check_file
from ..files.strict_json import read_json
from ..motion_file.provenance import first_start
from .budget import planned
from .loop import Training
from .optimizer_state import (
    optimizer_groups,
    optimizer_state,
    restore_groups,
    restore_optimizer,
)
from .recipe import TrainConfig

FORMAT = 1
_ROUNDING = 0.05  # relative: more than half precision rounds, less than another encoder differs
_MOST_STEPS = 10**9
_FREE = (
    "gradient_checkpointing",
    "start_from",
    "patience",
)  # settings that do not change a resumed run
_BEFORE = {
    "query_decay": "change",
    "difference_loss": 0.0,
    "timestep_shift": 1.0,
    "minutes": 0.0,
    "update": "step",
}  # of states that do not tell it


class StateError(LampError):
    """A training state cannot be written, read or used for this run."""


@dataclass(frozen=True)
class TrainingState:
    """Tensors by name, and facts: step, settings, identity of base and clips."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.facts["step"])

    @property
    def run(self) -> str:
        """The id of its run; empty in states of earlier versions."""
        return str(self.facts.get("run", ""))


def take_state(training: Training, identity: dict[str, str], run: str = "") -> TrainingState:
    """The state after the last completed step.

    Args:
        identity: what the run depends on besides its settings, by name (`base`, `clips`).
        run: the run's id, which is also in the headers of its motions.

    Raises:
        StateError: an error interrupted an update, so that the parameters belong to no step.
    """
    if training.updating:
        raise StateError("The last update was interrupted, so its parameters cannot be saved.")
    random, order = training.position
    tensors = {f"motion.{name}": value for name, value in training.motion.state_dict().items()}
    tensors |= {f"average.{i}": value for i, value in enumerate(training.average.values)}
    encodings = training.batches.clips.encodings
    tensors |= {f"encoding.{name}": value for name, value in encodings.items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in enumerate(optimizer_state(training.optimizer)):
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                numbers.setdefault(str(index), {})[key] = value
    tensors["random"] = random
    tensors["losses"] = torch.tensor(training.losses, dtype=torch.float64)
    facts = {
        "step": training.step,
        "settings": _settings(training.asked, training.group.count),
        "planned_steps": _planned_steps(training),
        "identity": identity,
        "run": run,
        "origin": training.origin,
        "order": order,
        "trained": list(training.motion.trained_parameters()),
        "validation": training.validation,
        "sample_scores": training.sample_scores,
        "average_updates": training.average.updates,
        "scaler": training.scaler.state_dict(),
        "optimizer_numbers": numbers,
        "optimizer_groups": optimizer_groups(training.optimizer),
    }
    return TrainingState(tensors, facts)


def write_state(path: Path, state: TrainingState) -> Path:
    """Write a state atomically (fsync, then rename).

    Raises:
        StateError: it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    header = {"lamp.state": json.dumps({"format": FORMAT, **state.facts})}
    try:
        return write_file(path, lambda temporary: save_file(tensors, temporary, metadata=header))
    except Exception as error:
        raise StateError(
            f"The training's state could not be written to {path.name}: {error}. "
            f"{write_advice(error, path.parent)}; earlier states are unchanged."
        ) from error


def read_state(path: Path, parts: tuple[str, ...] = ("",)) -> TrainingState:
    """Read what `write_state` wrote.

    Args:
        parts: the beginnings of the names of the tensors to read.

    Raises:
        StateError: it is missing, damaged, or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        check_file(path)
        with safe_open(path, framework="pt") as file:
            facts = read_json((file.metadata() or {})["lamp.state"])
            # Copies, as Windows can neither replace nor delete a memory-mapped file.
            names = [name for name in file.keys() if name.startswith(parts)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name).clone() for name in names}
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, this version reads {FORMAT}")
        if type(facts["step"]) is not int or not 0 <= facts["step"] <= _MOST_STEPS:
            raise TypeError("its step is not a valid number")
    except (
        SafetensorError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        MemoryError,
    ) as error:
        raise StateError(
            f"{path.name} is not a readable training state ({str(error)[:100]}): resume from "
            "another one."
        ) from error
    return TrainingState(tensors, facts)


def restore(training: Training, state: TrainingState, identity: dict[str, str]) -> None:
    """Restore `state` into a new `training`.

    Raises:
        StateError: a setting that changes the numbers differs, or the state is damaged. The
            training must not be used then.
    """
    with named(state):
        check_state(state, training.asked, training.group.count, identity)
        _refuse_other_encodings(state, training.batches.clips.encodings)
        _restore(training, state)


def check_state(
    state: TrainingState,
    config: TrainConfig,
    processes: int,
    identity: dict[str, str],
    unsettled: Collection[str] = (),
) -> None:
    """Check before a model is loaded whether a run can resume from `state`.

    Args:
        identity: what is known of it already, see `take_state`.
        unsettled: names of settings that are not known yet.

    Raises:
        StateError: a setting that changes the numbers differs, or the state is beyond the run's
            last step.
    """
    with named(state):
        last = config.steps
        if config.minutes:
            last = int(state.facts.get("planned_steps", 0)) or state.step
        if not 0 < state.step <= last:
            raise StateError(
                f"The state is at step {state.step}, but the run has steps {last}: raise "
                "steps to continue, or set resume to none for a new run."
            )
        _refuse_another_start(state, config.start_from)
        _refuse_changes(state, _settings(config, processes), identity, unsettled)


def begun_with(state: TrainingState, names: Collection[str], processes: int = 1) -> dict[str, Any]:
    """What of the settings `names` a run cannot change any more, with the values it began with.

    Raises:
        StateError: the state is damaged.
    """
    with named(state):
        settings = {**_BEFORE, **state.facts["settings"]}
        settings["batch"] = int(settings["batch"]) // processes  # 0 fits no run
        return {n: settings[n] for n in names if n in settings and n not in _FREE}


@contextlib.contextmanager
def named(state: TrainingState) -> Iterator[None]:
    """Turn every error of a damaged state into a `StateError`."""
    try:
        yield
    except StateError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        OverflowError,
    ) as error:
        raise StateError(
            f"The state of step {state.facts.get('step')} does not match this training "
            f"({str(error)[:200]}): resume from another one, or set resume to none for a new run."
        ) from error


def _restore(training: Training, state: TrainingState) -> None:
    tensors, facts = state.tensors, state.facts
    training.motion.load_state_dict(below("motion.", tensors))
    entries: list[dict[str, Any]] = [{} for _ in training.trained]
    for index, numbers in facts["optimizer_numbers"].items():
        entries[int(index)].update(numbers)
    for name, value in below("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        entries[int(index)][key] = value
    restore_optimizer(training.optimizer, entries, training.state_device)
    if "optimizer_groups" in facts:  # states of earlier versions have none
        restore_groups(training.optimizer, facts["optimizer_groups"])
    for number, value in enumerate(training.average.values):
        value.copy_(tensors[f"average.{number}"])
    training.origin = {str(key): str(text) for key, text in facts.get("origin", {}).items()}
    training.average.updates = int(facts["average_updates"])
    training.scaler.load_state_dict(facts["scaler"])
    if steps := int(facts.get("planned_steps", 0)):
        training.plan(planned(training.asked, steps))
    training.sample_scores[:] = [
        (int(step), {str(name): float(value) for name, value in scores.items()})
        for step, scores in facts.get("sample_scores", [])
    ]
    training.resume_at(
        tensors["random"], facts["order"], tensors["losses"].tolist(), facts["validation"]
    )


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _settings(config: TrainConfig, processes: int) -> dict[str, Any]:
    """The settings that change the numbers. `steps` does so only if the learning rate depends on
    it, and not with a time budget."""
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE}
    settings["batch"] = config.batch * processes
    settings["betas"] = list(config.betas)
    if config.rate_schedule == "constant" or config.minutes:
        del settings["steps"]
    return settings


def _planned_steps(training: Training) -> int:
    """The number of steps that fits the run's `minutes`; 0 if unknown or not asked for."""
    planned = bool(training.asked.minutes) and not training.unplanned
    return training.config.steps if planned else 0


def _refuse_another_start(state: TrainingState, start_from: str) -> None:
    """A resumed run has the weights of its state. It would ignore another motion file."""
    begun = first_start(state.facts.get("origin", {}))
    if start_from and PurePath(start_from).name != begun:
        raise StateError(
            f"The state of step {state.step} was started from {begun or 'no motion'}, but "
            f"start_from is {start_from}: clear start_from to resume, or set resume to none for a "
            "new run that starts from it."
        )


def _refuse_other_encodings(state: TrainingState, now: dict[str, Tensor]) -> None:
    """Another VAE, text encoder or clip skip: the run would go on with other latents or texts."""
    for name, then in below("encoding.", state.tensors).items():  # earlier versions have none
        same_shape = then.shape == now[name].shape
        if not same_shape or not (now[name] - then).norm() <= _ROUNDING * then.norm():
            raise StateError(
                f"The state of step {state.step} was trained with another {name} (or with other "
                "LoRAs or clip skip): connect the same, or set resume to none for a new run."
            )


def _refuse_changes(
    state: TrainingState,
    settings: dict[str, Any],
    identity: dict[str, str],
    unsettled: Collection[str],
) -> None:
    pairs = (("settings", settings), ("identity", identity))
    for part, now in pairs:
        then = {**(_BEFORE if part == "settings" else {}), **state.facts[part]}
        names = {*then, *now} if part == "settings" else {*now}
        for name in sorted(names.difference(unsettled)):
            if then.get(name) == now.get(name):
                continue
            if part == "identity":
                raise StateError(
                    f"The state of step {state.step} was trained with different {name}: use the "
                    "same, or set resume to none for a new run. To go on learning with other "
                    f"{name}, set resume to none and start_from to the motion so far."
                )
            raise StateError(
                f"The state of step {state.step} was trained with {name} {then.get(name)}, but "
                f"this run has {now.get(name)}: choose the same, or set resume to none for a new "
                "run."
            )
