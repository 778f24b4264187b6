"""The motion of a training state, for a step whose motion was not saved (`keep_motions`)."""

from __future__ import annotations

import glob
import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..motion_file.config import read_config
from ..motion_file.file import RUN_KEY, MotionFile, read_header
from ..motion_file.provenance import LICENSE_KEY, SCORES_KEY, history
from .compare import sample_thumbnail
from .low_rank import whole_state
from .session import newest_first
from .state import StateError, TrainingState, below, named, read_state
from .stopping import merged


def motion_of_state(path: Path, motion: Path) -> MotionFile:
    """The motion of a training state.

    Args:
        motion: path of the run's motion without `.safetensors`. What a state does not record, such
            as captions and size, comes from the motions that the run saved there.

    Raises:
        StateError: the state is damaged, its averages cannot be known, or the run saved no motion.
    """
    state = read_state(path, ("motion.", "average."))
    with named(state):
        tensors = {name: value.float() for name, value in _shown(state).items()}
        measured = merged(state.facts["validation"], state.facts.get("sample_scores", []))
        scores = {each.step: each.scores for each in measured}.get(state.step)
        header = _header(state, motion)
        config = replace(read_config(motion.name, header), steps=state.step, importance={})
        kept = {name: text for name, text in history(header).items() if name != SCORES_KEY}
        kept |= {LICENSE_KEY: header[LICENSE_KEY]} if LICENSE_KEY in header else {}
        kept |= {SCORES_KEY: json.dumps(scores)} if scores else {}
        kept |= {RUN_KEY: state.run} if state.run else {}
        kept |= {"modelspec.thumbnail": sample_thumbnail(path.parent, state.step)}
    return MotionFile(tensors, config, kept, f"{motion.name}-step{state.step:06}")


def _shown(state: TrainingState) -> dict[str, Tensor]:
    """The motion's tensors, averaged where the training averages them."""
    tensors, averages = below("motion.", state.tensors), below("average.", state.tensors)
    names = state.facts.get("trained", [])
    if state.facts["settings"]["optimizer"] == "schedulefree" or (averages and not names):
        raise StateError(
            f"The motion of step {state.step} is an average, which this state does not hold: "
            "resume the training from it, and cancel after a step."
        )
    averaged = {names[int(number)]: value for number, value in averages.items()}
    return whole_state(tensors | averaged)


def _header(state: TrainingState, motion: Path) -> dict[str, str]:
    for path in newest_first(motion.parent.glob(f"{glob.escape(motion.name)}*.safetensors")):
        header = read_header(path)
        if header and header.get(RUN_KEY, "") == state.run:
            return header
    raise StateError(
        f"There is no motion {motion.name} of the run of this state, which has the captions: "
        "resume the training from the state, and cancel after a step."
    )
