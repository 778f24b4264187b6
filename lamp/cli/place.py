"""Where a run writes: FOLDER/NAME_00001.safetensors, and FOLDER/NAME_00001/ for all else."""

from __future__ import annotations

from pathlib import Path

from ..files.names import number_of
from ..plain import log
from ..training.session import Place, Say, newest_run
from ..training.state import read_state
from .train_config import LATEST


def find_place(folder: Path, name: str, resume: str | Path, say: Say = log.warning) -> Place:
    """A new place for NAME, or that of the run which is resumed.

    Args:
        resume: `none`, `latest` (a new place if there is no run of that name), or a state's file.
        say: told if there is no such run, and which states cannot be read.

    Raises:
        StateError: the chosen state is damaged.
    """
    if isinstance(resume, Path):
        return Place(resume.parent, resume.parent, read_state(resume))
    target = folder / name
    if resume == LATEST:
        found = newest_run(target, say)
        if found is not None:
            return Place(found[0].parent, found[0].parent, found[1])
        say(f"There is no earlier run of {name}: a new one starts.")
    taken = (number_of(path.name, target.name) for path in target.parent.glob("*"))
    fresh = target.with_name(f"{target.name}_{max(taken, default=0) + 1:05}")
    return Place(fresh, fresh)
