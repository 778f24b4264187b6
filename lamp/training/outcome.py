"""What is left of a tuning run: the motion file, also of a run that was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..clips.clip_set import ClipSet
from ..errors import LampError, MotionFileError
from ..motion_file.config import MotionConfig
from ..motion_file.file import RUN_KEY, MotionFile, run_of, save_motion
from ..plain import log
from .loop import StepReport, Training
from .low_rank import factors, whole_state
from .optimizers import importance
from .recipe import TrainConfig
from .samples import save_loss_plot
from .session import RunFolder, SaveConfig, run_training
from .state import StateError


def describe_training(config: TrainConfig, clips: ClipSet, family: str) -> dict[str, Any]:
    """What the motion file tells of its training: fields of `MotionConfig`."""
    captions = clips.captions
    sizes = {clips.size(clip) for clip in range(len(clips))}
    width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
    return {
        "family": family,
        "frames": config.frames,
        "width": width,
        "height": height,
        "fps": clips.window_rate or 0.0,
        "groupnorm": config.groupnorm,
        # One prompt for all clips is the motion's own; captions clip by clip are no such thing.
        "prompt": captions[0] if len(set(captions)) == 1 else "",
        "captions": captions,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
    }


@dataclass(frozen=True)
class Outcome:
    """Where a run's motion goes and what its file tells.

    - ``target``: without `.safetensors`; ``about``: see `describe_training`;
    - ``extra``: further entries of the file's header;
    - ``run``: the run's own mark (`mark_of`): it replaces a file only if that has the same.
    """

    target: Path
    about: Mapping[str, Any]
    extra: Mapping[str, str] = field(default_factory=dict)
    run: str = ""

    def file(self, training: Training) -> MotionFile:
        """The motion as it is now, averaged if the run averages, in fp32 on the CPU."""
        with training.average.shown():
            state = whole_state(training.motion)
            state = {name: value.detach().float().cpu().clone() for name, value in state.items()}
        factors_learned = bool(training.config.rank)
        known = {} if factors_learned else importance(training.motion, training.optimizer)
        about = MotionConfig(**self.about, steps=training.step, importance=known)
        return MotionFile(state, about, name=self.target.name)

    def write(self, training: Training, mark: str = "") -> Path:
        """Save it; what was learned as factors stays in factors.

        Raises:
            MotionFileError: it holds NaN, or the disk refuses it.
        """
        file = self.file(training)
        path = self.target.with_name(f"{self.target.name}{mark}.safetensors")
        extra = {**self.extra, RUN_KEY: self.run} if self.run else self.extra
        own = bool(self.run) and path.exists() and run_of(path) == self.run
        with training.average.shown():
            parts = factors(training.motion)
            return save_motion(
                path, file.state, file.config, factors=parts, extra=extra, new=not own
            )


def train_to_file(
    training: Training,
    folder: RunFolder,
    save_config: SaveConfig,
    outcome: Outcome,
    on_step: Callable[[StepReport], None],
    sample: Callable[[Training], object] | None = None,
    say: Callable[[str], None] = log.warning,
) -> Path:
    """Train to the end and write the motion; on a cancel or an error write what there is, as
    `NAME-step000123-stopped.safetensors`, say so, then let it through. See `run_training`.

    Raises:
        MotionFileError: the disk refuses the motion; what was learned is kept as a state then, if
            the disk has room for one.
    """
    folder.forget_after(training.step)
    begun = training.step
    try:
        run_training(
            training, folder, save_config, on_step, sample if save_config.sample_every else None
        )
    except BaseException:
        # BaseException: a host's cancel is none of Exception's children on every version.
        if training.step > begun and not training.updating:
            _write_stopped(training, outcome, say)
        raise
    try:
        path = outcome.write(training)
    except MotionFileError as error:
        raise MotionFileError(f"{error}{_kept(training, folder)}") from error
    try:
        save_loss_plot(folder.path / "loss.png", training.losses, training.validation)
    except LampError as error:  # the motion is there, and a picture is no reason to fail
        say(str(error))
    return path


def _write_stopped(training: Training, outcome: Outcome, say: Callable[[str], None]) -> None:
    try:
        path = outcome.write(training, f"-step{training.step:06}-stopped")
    except MotionFileError as error:  # why the run stopped matters more
        say(str(error))
    else:
        say(f"stopped after step {training.step}, saved as {path.name}")


def _kept(training: Training, folder: RunFolder) -> str:
    """Keep the state of a run whose motion could not be written; says where it is."""
    try:
        state = folder.save_state(training)
    except StateError:
        return ""
    return f" What was learned is kept as {folder.path.name}/{state.name}: resume from it."
