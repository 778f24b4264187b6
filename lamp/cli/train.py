"""`python -m lamp train`: few-shot tuning on the diffusers host."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "train"
HELP = "learn the motion of a few clips"

_ABOUT = """\
Learn the motion of a few clips, by a TOML file with four tables:

  [base]    path = "v1-5.safetensors", a diffusers folder, or "toy"; tokenizer
  [data]    folder, prompt, frames, width, height, fps, stride, fit, bucket, ...
  [recipe]  preset = "paper" or "fast"; steps, batch, learning_rate, seed, ...
  [output]  name, folder, save_every, keep, sample_every, resume, cache

docs/train.toml explains every one of them. The motion goes to FOLDER/NAME_00001.safetensors; a
folder of the same name holds the log, the loss, samples, and the states to resume from."""
_MORE = """\
examples:
  python -m lamp train horse.toml
  python -m lamp train horse.toml --set recipe.steps=500 --set output.resume=latest
  accelerate launch -m lamp train horse.toml

Ctrl-C ends the run after the step that it is in, and keeps what was learned; twice ends it at once.
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
        help="put a value over the file's; may be repeated",
    )


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from .train_config import read_settings
    from .train_run import train

    train(read_settings(args.config, args.changes))
