"""Where a run writes: FOLDER/NAME_00001.safetensors, and FOLDER/NAME_00001/ for all else."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from ..session import newest_state
from ..training_state import TrainingState, read_state
from .train_config import LATEST


@dataclass(frozen=True)
class Place:
    """A run's folder, which is also its motion's path without ending, and the state that it goes
    on from."""

    folder: Path
    state: TrainingState | None = None


def find_place(folder: Path, name: str, resume: str | Path) -> Place:
    """A new place for NAME, or that of the run which is resumed.

    Args:
        resume: `none`, `latest` (a new place if there is no run of that name), or a state's file.

    Raises:
        StateError: the chosen state is damaged.
    """
    if isinstance(resume, Path):
        return Place(resume.parent, read_state(resume))
    target = folder / name
    if resume == LATEST:
        runs = target.parent.glob(f"{glob.escape(target.name)}_[0-9]*/")
        found = newest_state(sorted(run for run in runs if _number(run, target.name)))
        if found is not None:
            return Place(found[0].parent, found[1])
    taken = (_number(path, target.name) for path in target.parent.glob("*"))
    return Place(target.with_name(f"{target.name}_{max(taken, default=0) + 1:05}"))


def _number(path: Path, name: str) -> int:
    """The run's number in `NAME_00012`, also of its files; 0 for anything else."""
    match = re.match(re.escape(name) + r"_(\d+)(?:[.-]|$)", path.name)
    return int(match[1]) if match else 0
