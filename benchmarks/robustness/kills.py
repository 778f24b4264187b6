"""kill -9 during training, saving a motion and caching: no half-written file is ever read.

The victims are forked, so that a kill costs no start-up; systems without fork cannot run this. This
process itself never trains, because autograd does not survive a fork.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.samples.small_training import main as train_small
from lamp.files.cache import TensorCache, entry_name
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import load_motion_file, save_motion
from lamp.training.session import newest_state, states
from lamp.training.state import read_state

from .loaders import small_sites
from .watch import Result

STEPS = 20
SITES = small_sites(64, 64)
_ENTRIES = 250  # which take longer than any kill waits


def kill_often(count: int, seed: int, folder: Path) -> Result:
    """`count` kills at random moments, of each kind in turn; a training resumes after its kill."""
    random, result = Random(seed), Result()
    works: tuple[tuple[Callable[[Path], None], Callable[[Path], list[str]]], ...] = (
        (_train, check_states), (_save, check_motion), (_fill_cache, check_cache)
    )  # fmt: skip
    runs = 0
    for number in range(count):
        work, check = works[number % len(works)]
        name = work.__name__.strip("_")
        place = folder / f"{name}{runs if work is _train else number}"
        place.mkdir(exist_ok=True)
        if _kill(work, place, random):
            result.counts[name] += 1
        result.problems += [f"kill {number} of {name}: {problem}" for problem in check(place)]
        if work is _train and (found := newest_state([place])) and found[1].step > STEPS // 2:
            result.problems += _check_end(place)
            runs += 1
    if (train := folder / f"train{runs}").is_dir():
        result.problems += _check_end(train)
    return result


def _kill(work: Callable[[Path], None], place: Path, random: Random) -> bool:
    """Start `work` and kill it some time after its first file (of a training: state); whether it
    was still running."""
    files = states if work is _train else _files
    before = files(place)
    victim = _start(work, place)
    while victim.is_alive() and files(place) == before:
        time.sleep(0.001)
    victim.join(random.random() * 0.3)
    victim.kill()
    victim.join()
    return victim.exitcode == -9


def _files(place: Path) -> list[Path]:
    return sorted(place.iterdir())


def _start(work: Callable[[Path], None], place: Path) -> Any:
    process: Any = multiprocessing.get_context("fork").Process(target=work, args=(place,))
    process.start()
    return process


# --- training ---------------------------------------------------------------------------------


def _train(folder: Path) -> None:
    torch.set_num_threads(1)
    train_small(folder, STEPS)


def check_states(folder: Path) -> list[str]:
    """Every file with a state's name is complete."""
    for path in states(folder):
        read_state(path)
    return []


def _check_end(folder: Path) -> list[str]:
    """The run finishes with the same result as a run that was never killed."""
    straight = folder.with_name("straight")
    for place in (folder,) if straight.is_dir() else (straight, folder):
        _start(_train, place).join()
    ends = [newest_state([place]) for place in (folder, straight)]
    (_, ours), (_, theirs) = (end for end in ends if end is not None)
    if ours.step != STEPS or ours.facts["validation"] != theirs.facts["validation"]:
        return [f"the resumed run ends at step {ours.step}"]
    different = [
        name for name, tensor in theirs.tensors.items() if not _same(ours.tensors[name], tensor)
    ]
    return [f"the resumed run ends with another {different[0]}"] if different else []


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


# --- motion files and cache -------------------------------------------------------------------


def _save(folder: Path) -> None:
    """Overwrite a motion again and again, each time with another single number."""
    shapes = Motion(SITES).state_dict()
    for number in range(1000):
        state = {name: torch.full_like(tensor, number) for name, tensor in shapes.items()}
        save_motion(folder / "m.safetensors", state, MotionConfig("sd1", steps=number))


def check_motion(folder: Path) -> list[str]:
    path = folder / "m.safetensors"
    if not path.exists():
        return []
    file = load_motion_file(path)
    file.check_against(SITES)
    whole = all((tensor == file.config.steps).all() for tensor in file.state.values())
    return [] if whole else ["the motion mixes two saves"]


def _fill_cache(folder: Path) -> None:
    cache = TensorCache(folder)
    for number in range(_ENTRIES):
        cache.get(entry_name("posterior", number), lambda number=number: cache_entry(number))


def cache_entry(number: int) -> dict[str, Tensor]:
    return {"mean": torch.randn(16, 1024, generator=torch.Generator().manual_seed(number))}


def check_cache(folder: Path) -> list[str]:
    """Every entry is what was computed, and the cache warns of none."""
    said: list[str] = []
    listener, cache = logging.Handler(logging.WARNING), TensorCache(folder)
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lamp").addHandler(listener)
    try:
        for number in range(_ENTRIES):
            name = entry_name("posterior", number)
            if (folder / name).exists():
                found = cache.get(name, lambda number=number: cache_entry(number))
                if not (found.cached and _same(found.tensors["mean"], cache_entry(number)["mean"])):
                    said.append(f"entry {number} is not what was computed")
    finally:
        logging.getLogger("lamp").removeHandler(listener)
    return said
