"""What the trainer node keeps and shows: the run's folder, the motion file, samples, progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ..lamp.errors import LampError
from ..lamp.files.lock import new_folder
from ..lamp.plain import log
from ..lamp.training.loop import StepReport, Training
from ..lamp.training.samples import sample_clip, save_animation, save_loss_plot
from ..lamp.training.session import newest_first, newest_run, states
from ..lamp.training.state import read_state
from .common import motion_folder
from .model_paths import motion_root
from .progress import NodeProgress, duration

RUNS = "lamp_training"
_DEEPEST = 6  # parts of a name: horses/brown/run_00001 has three
NONE, LATEST = "none", "latest"


def runs_root() -> Path:
    """The folder of all runs: below the output folder, where people look for what was made."""
    return Path(folder_paths.get_output_directory(), RUNS)


def resume_choices() -> list[str]:
    """`none`, `latest`, and every state that was kept, newest first."""
    folders = _folders(runs_root(), _DEEPEST)
    found = newest_first(path for folder in folders for path in states(folder))
    return [NONE, LATEST, *(path.relative_to(runs_root()).as_posix() for path in found)]


def _folders(root: Path, deepest: int) -> Iterator[Path]:
    """The folders of runs, whose names have few parts: what else lies below is not walked through,
    nor are links, which may lead in circles."""
    yield root
    if deepest == 0:
        return
    try:
        below = [Path(item.path) for item in os.scandir(root) if item.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for folder in below:
        if folder.name != "tensorboard":
            yield from _folders(folder, deepest - 1)


@dataclass(frozen=True)
class Place:
    """Where a run writes: its folder, its motion file, and the state that it goes on from."""

    folder: Path
    motion: Path
    state: Any = None


def find_place(name: str, resume: str) -> Place:
    """A new place for NAME, or that of the run which is resumed.

    Raises:
        LampError: the name leads elsewhere, or the chosen state is gone.
    """
    fresh = motion_folder(name)
    if resume == NONE:
        return _new_place(fresh)
    if resume == LATEST:
        stem = fresh.relative_to(motion_root()).as_posix().rsplit("_", 1)[0]
        found = newest_run(runs_root() / stem)
        if found is None:
            log.info("no earlier training of %s: it starts anew", name)
            return _new_place(fresh)
        path, state = found
    else:
        # Of the list alone: not every version of the host checks what comes over its API.
        if resume not in resume_choices():
            raise LampError(
                f"The state '{resume[:100]}' is gone: refresh the list and choose another."
            )
        path = runs_root() / resume
        state = read_state(path)
    relative = path.parent.relative_to(runs_root())
    return Place(path.parent, motion_root() / relative, state)


def _new_place(fresh: Path) -> Place:
    return Place(runs_root() / fresh.relative_to(motion_root()), fresh)


def claim(place: Place) -> Place:
    """Make the folder of a new run, so that no other takes it: with the next free number, for a run
    that was stopped before it wrote a motion has taken its number, too.

    Raises:
        LampError: the disk refuses it.
    """
    if place.state is not None:
        return place
    folder = new_folder(place.folder)
    return Place(folder, place.motion.with_name(folder.name))


@dataclass(frozen=True)
class SampleCase:
    """What the samples show: a first frame `c h w`, its text `1 n d`, the empty text, guidance."""

    first: Tensor
    text: Tensor
    empty: Tensor
    guidance: float
    fps: float


class Show:
    """Progress, samples and the loss plot of a run, on the node and in its folder."""

    def __init__(
        self, progress: NodeProgress, folder: Path, case: SampleCase, decode: Callable[..., Tensor]
    ) -> None:
        self._progress, self._folder, self._case, self._decode = progress, folder, case, decode
        self._frames: list[Any] = []

    def step(self, report: StepReport) -> None:
        """Move the bar; the last sample plays in the node's preview, a frame a step."""
        rate = 1 / max(report.seconds_per_step, 1e-9)
        speed = f"{rate:.2f} steps/s" if rate >= 0.1 else f"{1 / rate:.1f} s a step"
        self._progress.say(
            f"loss {report.loss:.4f}, step {report.step} of {report.steps}, {speed}, "
            f"{duration(report.seconds_left)} left"
        )
        picture = self._frames[report.step % len(self._frames)] if self._frames else None
        self._progress.update(report.step, report.steps, picture)

    def sample(self, training: Training) -> None:
        """Draw the motion as it is now, with the loss so far."""
        case = self._case
        latents = sample_clip(training, case.first, case.text, case.empty, guidance=case.guidance)
        frames = self._decode(latents)
        save_animation(self._folder / f"sample-step{training.step:06}.webp", frames, case.fps)
        save_loss_plot(self._folder / "loss.png", training.losses, training.validation)
        self._frames = pictures(frames)


def pictures(frames: Tensor) -> list[Any]:
    """`f h w 3` in 0..1 as pictures of PIL."""
    from PIL import Image

    return [Image.fromarray(frame.numpy()) for frame in (frames * 255).round().byte()]
