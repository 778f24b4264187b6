"""The motion file of a training run, also of one that was stopped."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ..clips.clip_set import ClipSet
from ..errors import LampError, MotionFileError, is_out_of_memory
from ..motion_file.config import MotionConfig, read_config
from ..motion_file.file import RUN_KEY, MotionFile, read_header, run_of, save_motion
from ..motion_file.provenance import CARD_KEY, SCORES_KEY, TRAINING_KEY
from ..plain import log
from .compare import sample_thumbnail, save_comparison
from .loop import StepReport, Training
from .low_rank import factors, whole_state
from .optimizers import importance
from .recipe import TrainConfig
from .samples import save_loss_plot
from .session import BEST, RunFolder, SaveConfig, Say, run_training, state_steps, step_mark
from .state import StateError
from .stopping import Measured, lost_steps, merged


def describe_training(config: TrainConfig, clips: ClipSet, family: str) -> dict[str, Any]:
    """Metadata of the motion file about its training: fields of `MotionConfig`."""
    captions = clips.captions
    width, height = clips.sizes[0] if len(clips.sizes) == 1 else (0, 0)
    return {
        "family": family,
        "frames": config.frames,
        "width": width,
        "height": height,
        "fps": clips.window_rate or 0.0,
        "groupnorm": config.groupnorm,
        # Only a prompt shared by all clips is the motion's prompt.
        "prompt": captions[0] if len(set(captions)) == 1 else "",
        "captions": captions,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
    }


@dataclass(frozen=True)
class Outcome:
    """The motion file of a run.

    - ``target``: path without `.safetensors`; ``about``: see `describe_training`;
    - ``extra``: further entries of the file's header;
    - ``run``: the run's id (`mark_of`); only a file with the same id is replaced.
    """

    target: Path
    about: Mapping[str, Any]
    extra: Mapping[str, str] = field(default_factory=dict)
    run: str = ""

    def file(self, training: Training) -> MotionFile:
        """The current motion (its average, if there is one) in fp32 on the CPU."""
        with training.average.shown():
            state = whole_state(training.motion.state_dict())
            state = {name: value.detach().float().cpu().clone() for name, value in state.items()}
        factors_learned = bool(training.config.rank)
        known = {} if factors_learned else importance(training.motion, training.optimizer)
        about = MotionConfig(**self.about, steps=training.step, importance=known)
        return MotionFile(state, about, self._records(training), self.target.name)

    def _records(self, training: Training) -> dict[str, str]:
        """Header entries about the training."""
        # Without the folder, which is private.
        start = PurePath(training.config.start_from).name
        settings = json.dumps({**asdict(training.config), "start_from": start})
        card = {CARD_KEY: self.extra[CARD_KEY]} if CARD_KEY in self.extra else {}
        scores = {each.step: each.scores for each in measures(training)}.get(training.step)
        measured = {SCORES_KEY: json.dumps(scores)} if scores else {}
        return {**training.origin, TRAINING_KEY: settings, **card, **measured}

    def write(self, training: Training, mark: str = "", folder: Path | None = None) -> Path:
        """Save the motion; factors are stored as factors.

        Args:
            mark: the end of the file name.
            folder: the run's folder, whose newest sample becomes the thumbnail.

        Raises:
            MotionFileError: it contains NaN or cannot be written.
        """
        file = self.file(training)
        path = self.target.with_name(f"{self.target.name}{mark}.safetensors")
        extra = {**self.extra, **self._records(training)}
        if self.run:
            extra[RUN_KEY] = self.run
        own = bool(self.run) and path.exists() and run_of(path) == self.run
        picture = "" if folder is None else sample_thumbnail(folder, training.step)
        with training.average.shown():
            parts = factors(training.motion.state_dict())
            return save_motion(
                path,
                file.state,
                file.config,
                factors=parts,
                thumbnail=picture,
                extra=extra,
                new=not own,
            )

    def best_kept(self) -> int:
        """The step of the best motion that this run has kept, with `patience`; 0 for none."""
        path = self.target.with_name(f"{self.target.name}{BEST}.safetensors")
        if not self.run or run_of(path) != self.run:
            return 0
        try:
            return read_config(path.stem, read_header(path)).steps
        except MotionFileError:
            return 0

    def kept(self) -> set[int]:
        """The steps whose motions have a file, see `SaveConfig.keep_motions`."""
        name = f"{glob.escape(self.target.name)}-step*.safetensors"
        found = self.target.parent.glob(name)
        return {int(path.stem[-6:]) for path in found if path.stem[-6:].isdecimal()}


def train_to_file(
    training: Training,
    folder: RunFolder,
    save_config: SaveConfig,
    outcome: Outcome,
    on_step: Callable[[StepReport], None],
    sample: Callable[[Training], object] | None = None,
    say: Say = log.warning,
) -> Path:
    """Run the training and write the motion. A cancel or an error writes the motion so far as
    `NAME-step000123-stopped.safetensors` and is raised again. See `run_training`.

    Raises:
        MotionFileError: the motion cannot be written; a state is saved instead, if possible.
    """
    if training.config.patience and not save_config.sample_every:
        raise LampError(
            f"patience is {training.config.patience}, but sample_every is 0: nothing would be "
            "measured. Set sample_every, or patience to 0."
        )
    folder.forget_after(training.step)
    begun = training.step
    if begun >= training.config.steps:
        say(
            f"Nothing is left to train: the run has all of its {begun} steps. Raise steps, if the "
            "learning rate is constant, or set resume to none for a new run."
        )

    # Of measurements that a resumed run brings along.
    lost = lost_steps(measures(training), outcome.best_kept(), training.config)

    def keep(mark: str) -> None:
        try:
            outcome.write(training, mark, folder.path)
        except MotionFileError as error:
            if mark == BEST:  # the end of the run refers to it
                raise
            say(str(error))

    try:
        run_training(
            training,
            folder,
            save_config,
            on_step,
            sample if save_config.sample_every else None,
            keep,
            say,
            lost,
        )
    except BaseException:
        # In some versions of ComfyUI its cancel does not derive from Exception.
        if training.step > begun and not training.updating:
            _write_stopped(training, outcome, folder, say)
            _save_pictures(training, outcome, folder, say)
        raise
    if training.learned:
        say(
            f"learned after step {training.step}; the best motion, of step "
            f"{outcome.best_kept()}, is {outcome.target.name}{BEST}.safetensors"
        )
    try:
        path = outcome.write(training, folder=folder.path)
    except MotionFileError as error:
        raise MotionFileError(f"{error}{_kept(training, folder)}") from error
    _save_pictures(training, outcome, folder, say)
    return path


def measures(training: Training) -> list[Measured]:
    """All measures of a run so far, by step."""
    return merged(training.validation, training.sample_scores)


def _save_pictures(training: Training, outcome: Outcome, folder: RunFolder, say: Say) -> None:
    """The loss plot, and all samples side by side."""
    measured = measures(training)
    best = outcome.best_kept() if training.config.patience else 0
    try:
        save_loss_plot(folder.path / "loss.png", training.losses, training.validation)
        kept = outcome.kept() | {training.step}
        save_comparison(folder.path, measured, best or None, kept, state_steps(folder.path) - kept)
    except LampError as error:  # the motion is saved, a picture is no reason to fail
        say(str(error))


def _write_stopped(training: Training, outcome: Outcome, folder: RunFolder, say: Say) -> None:
    try:
        path = outcome.write(training, f"{step_mark(training.step)}-stopped", folder.path)
    except MotionFileError as error:  # the reason for the stop matters more
        say(str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        say("There is too little memory to write the motion so far: resume from the saved state.")
    else:
        say(f"stopped after step {training.step}, saved as {path.name}")


def _kept(training: Training, folder: RunFolder) -> str:
    """Save the state of a run whose motion cannot be written; returns where it is, in words."""
    try:
        state = folder.save_state(training)
    except StateError:
        return ""
    return f" The training state is saved as {folder.path.name}/{state.name}: resume from it."
