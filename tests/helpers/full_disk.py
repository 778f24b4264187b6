"""Trainings on a disk that takes files up to some size; a program, so that nobody else is limited.

    python -m tests.helpers.full_disk FOLDER BYTES...

For each number of bytes, trains in FOLDER/BYTES as far as it goes, with states, samples, log, plot
and motion. Prints one line of JSON: how they ended.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch

from benchmarks.samples.small_training import FRAMES, small_clips, small_host
from lamp.errors import LampError
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.training.loop import Training
from lamp.training.outcome import Outcome, train_to_file
from lamp.training.recipe import TrainConfig
from lamp.training.samples import save_animation, save_loss_plot
from lamp.training.session import RunFolder, SaveConfig, newest_state
from lamp.training.state import restore
from tests.helpers.disks import full_disk

WHO = {"base": "abc", "clips": "def"}
STEPS = 3


def main(folder: Path, limit: int) -> dict[str, object]:
    """Train with files of at most `limit` bytes."""
    torch.set_num_threads(1)
    host = small_host()
    config = TrainConfig(steps=STEPS, frames=FRAMES, learning_rate=1e-2)
    training = Training(host, Motion(map_unet(host.unet)).initialise(0), small_clips(), config)
    found = newest_state([folder / "run"])
    if found is not None:
        restore(training, found[1], WHO)
    run = RunFolder(folder / "run", WHO)
    outcome = Outcome(folder / "motion", {"family": "text16"})

    def sample(training: Training) -> None:
        save_animation(run.path / "sample.webp", torch.rand(FRAMES, 32, 32, 3), 8.0)
        save_loss_plot(run.path / "loss.png", training.losses, training.validation)

    said: list[str] = []
    every = 1 if limit % 2 else 0  # with and without states on the way
    save = SaveConfig(every, 2, every)
    try:
        with full_disk(limit):
            path = train_to_file(training, run, save, outcome, lambda _: None, sample, said.append)
    except LampError as error:
        return {"refused": str(error), "said": said, "step": training.step}
    return {"path": path.name, "said": said, "step": training.step}


if __name__ == "__main__":
    logging.disable(logging.ERROR)
    ended = {}
    for limit in sys.argv[2:]:
        (folder := Path(sys.argv[1]) / limit).mkdir()
        ended[limit] = main(folder, int(limit))
    sys.stdout.write(json.dumps(ended))
