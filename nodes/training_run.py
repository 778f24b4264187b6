"""The folder of a training run, and what the trainer node shows of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ..lamp.errors import LampError
from ..lamp.hosts.comfy.canvas import running_server
from ..lamp.hosts.comfy.folders import shown
from ..lamp.motion_file.file import RUN_KEY, run_of
from ..lamp.motion_file.provenance import save_motion_file
from ..lamp.plain import log, plain
from ..lamp.training.from_state import motion_of_state
from ..lamp.training.loop import StepReport, Training
from ..lamp.training.samples import Samples
from ..lamp.training.session import Place, newest_first, newest_run, states
from ..lamp.training.state import read_state
from .common import motion_folder
from .model_paths import motion_root
from .progress import NodeProgress, duration

RUNS = "lamp_training"
_DEEPEST = 6  # parts of a name: horses/brown/run_00001 has three
NONE, LATEST = "none", "latest"


def runs_root() -> Path:
    """The folder of all runs, in the output folder."""
    return Path(folder_paths.get_output_directory(), RUNS)


def resume_choices() -> list[str]:
    """`none`, `latest`, and every saved state, newest first."""
    folders = _folders(runs_root(), _DEEPEST)
    found = newest_first(path for folder in folders for path in states(folder))
    return [NONE, LATEST, *(path.relative_to(runs_root()).as_posix() for path in found)]


def _folders(root: Path, deepest: int) -> Iterator[Path]:
    """The folders of runs. Deeper folders are skipped, and so are links, which may form cycles."""
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


def find_place(name: str, resume: str, progress: NodeProgress) -> Place:
    """A new place for NAME, also if there is no `latest` run, or that of the run which is resumed.

    Args:
        progress: told which it is, and which states cannot be read.

    Raises:
        LampError: the name is not valid, or the chosen state does not exist.
    """
    fresh = motion_folder(name)
    if resume == NONE:
        return _new_place(fresh)
    if resume == LATEST:
        stem = fresh.relative_to(motion_root()).as_posix().rsplit("_", 1)[0]
        found = newest_run(runs_root() / stem, progress.warn)
        if found is None:
            progress.warn(f"There is no earlier training of {name}: a new one starts.")
            return _new_place(fresh)
        path, state = found
    else:
        path = _state_path(resume)
        state = read_state(path)
    progress.announce(f"resuming {path.parent.name} after step {state.step}")
    return Place(path.parent, _motion_of_run(path), state)


def save_motion_of_state(name: str) -> str:
    """Save the motion of a training state as one of `keep_motions`, if it has no file yet.

    Returns:
        Its name in the motion folder.

    Raises:
        LampError: there is no such state, or see `motion_of_state`.
    """
    path = _state_path(name)
    file = motion_of_state(path, _motion_of_run(path))
    target = _motion_of_run(path).with_name(f"{file.name}.safetensors")
    mark = {key: file.metadata[key] for key in (RUN_KEY,) if key in file.metadata}
    if not target.exists() or run_of(target) != mark.get(RUN_KEY):
        target = save_motion_file(target, file, extra=mark)
        log.info("LAMP: saved %s", shown(target))
    return str(target.relative_to(motion_root()))


def add_route() -> None:
    """Let a click in `web/choose.js` call `save_motion_of_state`; without a server, do nothing."""
    server = running_server()
    if server is None:
        return
    from aiohttp import web

    async def save(request: Any) -> Any:
        try:
            asked = await request.json()
            name = await asyncio.to_thread(save_motion_of_state, str(asked["state"]))
        except LampError as error:
            return web.json_response({"error": plain(str(error))}, status=400)
        except (KeyError, TypeError, ValueError):
            return web.json_response({"error": "state is missing"}, status=400)
        return web.json_response({"motion": name})

    server.routes.post("/lamp/motion_of_state")(save)


def _state_path(name: str) -> Path:
    # Some versions of the host do not check menu values sent over the API.
    if name in (NONE, LATEST) or name not in resume_choices():
        raise LampError(
            f"The training state '{name[:100]}' does not exist. Press R and choose another."
        )
    return runs_root() / name


def _motion_of_run(state: Path) -> Path:
    return motion_root() / state.parent.relative_to(runs_root())


def _new_place(fresh: Path) -> Place:
    return Place(runs_root() / fresh.relative_to(motion_root()), fresh)


class Show:
    """Shows progress and samples of a run on the node."""

    def __init__(self, progress: NodeProgress, samples: Samples) -> None:
        self._progress, self._samples = progress, samples
        self._frames: list[Any] = []

    def step(self, report: StepReport) -> None:
        """Move the bar. The last sample plays in the preview, one frame per step."""
        self._progress.say(
            f"loss {report.loss:.4f}, step {report.step} of {report.steps}, {report.speed}, "
            f"{duration(report.seconds_left)} left"
        )
        picture = self._frames[report.step % len(self._frames)] if self._frames else None
        self._progress.update(report.step, report.steps, picture)

    def sample(self, training: Training) -> None:
        """Sample the motion as it is now."""
        self._frames = pictures(self._samples(training))

    def end(self, plot: Tensor, steps: int) -> None:
        """Replace the last sample by the loss plot: new front ends keep the last preview."""
        if self._frames:
            self._progress.update(steps, steps, pictures(plot)[0])


def pictures(frames: Tensor) -> list[Any]:
    """`f h w 3` in 0..1 as PIL images."""
    from PIL import Image

    return [Image.fromarray(frame.numpy()) for frame in (frames * 255).round().byte()]
