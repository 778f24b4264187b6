"""A training run and its folder, with states to resume from, a log, samples and plots.

NAME_00001/
    state-step000500.safetensors    the newest states, see `lamp.training.state`
    log.jsonl                       one line per step
    loss.png                        raw, smoothed and validation loss
    sample-step000250.webp          the motion so far, always on the same first frame; the motion
                                    file NAME_00001-step000250 belongs to it, if it was kept
    samples.png, samples.webp       all samples side by side, see `lamp.training.compare`
    tensorboard/                    if TensorBoard is installed
    .lock                           see `lamp.files.lock`
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..clips.clip_set import ClipSet
from ..errors import LampError, is_out_of_memory
from ..files.atomic import write_file
from ..files.lock import new_folder
from ..files.names import number_of
from ..plain import log
from .budget import Budget
from .loop import StepReport, Training
from .overhead import Overhead, is_due
from .recipe import SaveConfig
from .state import StateError, TrainingState, read_state, take_state, write_state
from .stopping import Stopping, merged

BEST = "-best"
"""The end of the name of a run's best motion, with `patience`."""
_STATE = re.compile(r"state-step(\d+)(?:-\d+)?\.safetensors")


@dataclass(frozen=True)
class Place:
    """Where a run writes.

    - ``folder``: the run's folder, with states, log and samples;
    - ``motion``: the motion file's path without its suffix;
    - ``state``: the state that the run resumes from.
    """

    folder: Path
    motion: Path
    state: TrainingState | None = None

    def claim(self) -> Place:
        """Create the folder of a new run under the next free number, so that no other run takes it.

        Raises:
            LampError: the folder cannot be created.
        """
        if self.state is not None:
            return self
        folder = new_folder(self.folder)
        return Place(folder, self.motion.with_name(folder.name))


class RunFolder:
    """The folder of one run. `identity` names what the run depends on besides its settings, `run`
    is its own mark, see `mark_of`."""

    def __init__(self, path: Path, identity: dict[str, str], keep: int = 2, run: str = "") -> None:
        self.path, self.identity, self._keep, self._run = path, identity, max(keep, 1), run
        self._writer: Any = None
        self._logs = True

    def save_state(self, training: Training) -> Path:
        """Keep the run as it is, then let go of all but the newest states.

        Raises:
            StateError: see `take_state` and `write_state`.
        """
        path = self.path / f"state-step{training.step:06}.safetensors"
        path = write_state(path, take_state(training, self.identity, self._run))
        # Not this one, even if the run was resumed from before later states.
        older = [other for other in states(self.path) if other != path]
        for old in older[: max(len(older) + 1 - self._keep, 0)]:
            # A state that is open elsewhere (on Windows) goes next time.
            with contextlib.suppress(OSError):
                old.unlink()
        return path

    def log(self, report: StepReport, **more: float) -> None:
        """One line of JSON for a step, and TensorBoard's curves where it is installed.

        A disk that refuses them is no reason to stop: it is said once, and the run goes on.
        """
        record = {"loss": report.loss, "learning_rate": report.learning_rate, **more}
        line = {"step": report.step, **record, "seconds_per_step": report.seconds_per_step}
        if not self._logs:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if self._writer is None:
                self._writer = _tensorboard(self.path / "tensorboard")
            for name, value in record.items():
                self._writer.add_scalar(name, value, report.step)
        except OSError as error:
            self._stop_logging(error)

    def forget_after(self, step: int) -> None:
        """Drop the log's lines after `step`, which a resumed run repeats."""
        path = self.path / "log.jsonl"
        if not path.exists():
            return
        try:
            kept = [line for line in _lines(path) if line["step"] <= step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_file(path, lambda beside: beside.write_text(text, "utf-8"), rename=False)
        except OSError as error:
            self._stop_logging(error)

    def _stop_logging(self, error: OSError) -> None:
        self._logs = False
        log.warning("logging of the steps of %s stops: %s", self.path.name, error)

    def close(self) -> None:
        """Close the TensorBoard writer."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def step_mark(step: int) -> str:
    """The end of the names of files that belong to a step."""
    return f"-step{step:06}"


def mark_of(state: TrainingState | None) -> str:
    """The id by which a run recognises its own files: that of the state it resumes from, or a new
    one."""
    return (state.run if state is not None else "") or uuid.uuid4().hex


def identity(base: str, clips: ClipSet) -> dict[str, str]:
    """What a run depends on besides its settings: hashes of the image model and of the clips with
    their windows and captions."""
    settings = clips.settings
    cut: list[float] = [settings.frames, settings.stride, settings.flip]
    if settings.copies:
        cut += [settings.copies, settings.turn, settings.zoom, settings.shift]
    each = [[clips.key(clip), caption] for clip, caption in enumerate(clips.captions)]
    text = json.dumps([cut, each]).encode()
    return {"base": base, "clips": hashlib.sha256(text).hexdigest()}


def states(folder: Path) -> list[Path]:
    """The states in a run's folder, oldest first."""
    found = [(match, path) for path in folder.glob("state-step*") if (match := _name(path))]
    return [path for _, path in sorted(found)]


def state_steps(folder: Path) -> set[int]:
    """The steps of the states in a run's folder."""
    return {name[0] for path in states(folder) if (name := _name(path))}


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Files by age. Files deleted meanwhile are left out, as a run deletes its older states."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            found.append((path.stat().st_mtime_ns, path.name, path))
    return [path for *_, path in sorted(found, reverse=True)]


Say = Callable[[str], None]
"""Receives a warning for the user."""


def newest_run(target: Path, say: Say = log.warning) -> tuple[Path, TrainingState] | None:
    """`newest_state` of the runs FOLDER/NAME_00001, NAME_00002, ... of a target FOLDER/NAME."""
    runs = target.parent.glob(f"{glob.escape(target.name)}_[0-9]*/")
    return newest_state(sorted(run for run in runs if number_of(run.name, target.name)), say)


def newest_state(folders: list[Path], say: Say = log.warning) -> tuple[Path, TrainingState] | None:
    """The newest valid state and its file. Damaged ones are skipped with a warning."""
    by_age = newest_first(path for folder in folders for path in states(folder))
    for folder in dict.fromkeys(path.parent for path in by_age):
        for path in _newest_of_run([path for path in by_age if path.parent == folder]):
            try:
                return path, read_state(path)
            except StateError as error:
                say(str(error))
    return None


def _newest_of_run(by_age: list[Path]) -> list[Path]:
    """The states of a run, last step first, by its log if there is one, as the clock may be set
    back during a run. States beyond the log's end precede a resume from an earlier state."""
    try:
        last = max((line["step"] for line in _lines(by_age[0].parent / "log.jsonl")), default=0)
    except OSError:
        last = 0
    step = {path: _name(path) or (0, "") for path in by_age}
    if not last:
        return by_age
    return sorted(by_age, key=lambda path: (step[path][0] <= last, step[path]), reverse=True)


def run_training(
    training: Training,
    folder: RunFolder,
    save_config: SaveConfig,
    on_step: Callable[[StepReport], None],
    sample: Callable[[Training], object] | None = None,
    keep: Callable[[str], object] = lambda mark: None,
    say: Say = log.warning,
    lost: Collection[int] = (),
) -> None:
    """Take all remaining steps of `training`, with validation, samples and saved states. With
    `patience`, it ends when the motion is learned.

    An error or a cancel (an exception of `on_step` or `sample`) saves the state first, if possible.
    The parameters stay those of the last step, not their average.

    Args:
        keep: called with the end of a file name to save the motion as it is: `BEST`, with
            `patience`, or `step_mark`, see `SaveConfig.keeps_motion`.
        say: receives warnings.
        lost: see `Stopping`.

    Raises:
        LampError: out of memory, with settings to change; see also `Training.advance`.
    """
    saved, drawing = training.step, False
    every = {
        "save": save_config.save_every,
        "sample": save_config.sample_every,
        "test": save_config.sample_every,
    }
    overhead, budget = Overhead(every, training.config.steps), Budget(training)
    stopping = Stopping(lambda: keep(BEST), lost)

    def is_now(kind: str, step: int) -> bool:
        interval = every[kind]
        return is_due(step, interval, overhead.last) or (bool(interval) and budget.is_due(step))

    def after_step(report: StepReport) -> None:
        nonlocal saved, drawing
        more: dict[str, float] = {}
        due = is_now("test", report.step)
        if due:
            with overhead.timed("test"):
                held_out = training.validate()
            more |= {} if held_out is None else {"held_out_loss": held_out}
        folder.log(report, **more)
        if is_now("save", report.step):
            with overhead.timed("save"):
                folder.save_state(training)
            saved = report.step
        if due and sample is not None:
            drawing = True
            with overhead.timed("sample"):
                sample(training)
            drawing = False
            if save_config.keeps_motion(report.step, training.config.steps):
                keep(step_mark(report.step))
        if due:
            measured = merged(training.validation, training.sample_scores)
            training.learned = stopping.after(measured, training.config)
        if budget.is_due(report.step):
            if warning := budget.plan(overhead):
                say(warning)
        left = overhead.left(report.step)
        on_step(replace(report, steps=training.config.steps, overhead_seconds=left))

    try:
        training.run(after_step)
    except BaseException as stop:
        if not is_out_of_memory(stop):
            _rescue(training, folder, saved, say)
            raise
    else:
        return
    finally:
        folder.close()
    # Outside the handler, as the error holds the tensors of its step.
    advise = _sample_advice if drawing else _memory_advice
    raise LampError(advise(training, _rescue(training, folder, saved, say)))


def _rescue(training: Training, folder: RunFolder, saved: int, say: Say) -> int:
    """Save the state after a stop, if it is new; returns the step of the newest state."""
    training.optimizer.zero_grad(set_to_none=True)
    if training.step > saved:
        try:
            folder.save_state(training)
            return training.step
        except StateError as error:
            say(str(error))
    return saved


def _sample_advice(training: Training, kept: int) -> str:
    return (
        f"Out of memory while drawing the sample of step {training.step}. The state of step {kept} "
        "is saved: resume from it with sample_every 0 to draw no samples."
    )


def _memory_advice(training: Training, kept: int) -> str:
    """What may change where the run goes on, and what only in a run of its own."""
    config = training.config
    free = "Close other programs"
    if not config.gradient_checkpointing:
        free += ", or set checkpointing to on,"
    anew = [f"batch 1 and accumulate {config.batch * config.accumulate}"] * (config.batch > 1)
    anew += ["optimizer muon"] * (config.optimizer == "adamw")
    anew += ["clips of a smaller width and height", f"fewer frames than {config.frames}"]
    state, start = "", ""
    if kept:
        state, start = f"The state of step {kept} is saved. ", ", start_from the -stopped motion"
    again = "resume from it" if kept else "start again"
    return (
        f"Out of memory in step {training.step + 1}. {state}{free} and {again}. If that does not "
        f"suffice, begin a new run (resume none{start}) with {' or '.join(anew[:3])}."
    )


def _name(path: Path) -> tuple[int, str] | None:
    match = _STATE.fullmatch(path.name)
    return (int(match[1]), path.name) if match else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        # The last line of a killed run may be truncated or run into the next.
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


class _NoCurves:
    def add_scalar(self, name: str, value: float, step: int) -> None:
        """TensorBoard is not installed."""

    def close(self) -> None:
        """TensorBoard is not installed."""


def _tensorboard(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # a broken installation raises anything, for example from protobuf
        if not isinstance(error, ModuleNotFoundError):
            log.warning("TensorBoard cannot be used (log.jsonl has the same values): %s", error)
        return _NoCurves()
    return SummaryWriter(path)
