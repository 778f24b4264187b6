"""`python -m lamp train`: few-shot training on the diffusers host."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "train"
HELP = "train a motion on a few clips"

_ABOUT = """\
Train a motion on a few clips, configured by a TOML file with four tables:

  [base]    path = "v1-5.safetensors", a diffusers folder, or "toy"; tokenizer
  [data]    folder, prompt, frames, width, height, fps, stride, fit, bucket, ...
  [recipe]  preset = "paper" or "fast"; steps, batch, learning_rate, seed, ...
  [output]  name, folder, save_every, keep, sample_every, resume, cache

docs/command_line.md explains every key, docs/train.toml is an example. The motion is saved as
FOLDER/NAME_00001.safetensors; a folder of the same name holds log, loss plot, samples and states
to resume from."""
_MORE = """\
examples:
  python -m lamp train horse.toml
  python -m lamp train horse.toml --set recipe.steps=500 --set output.resume=latest
  accelerate launch -m lamp train horse.toml

Ctrl-C stops after the current step and saves the motion and the state; twice stops at once.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description, parser.epilog = _ABOUT, _MORE
    parser.add_argument("config", metavar="CONFIG.toml", type=Path, help="the settings of the run")
    parser.add_argument(
        "--set",
        metavar="TABLE.KEY=VALUE",
        dest="changes",
        action="append",
        default=[],
        help="override a value of the file; may be repeated",
    )


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from .train_config import read_settings
    from .train_run import train

    train(read_settings(args.config, args.changes))
