"""`python -m lamp inspect`: summarise motion files."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "inspect"
HELP = "show how a motion was trained and how to run it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = "Print a summary of each motion file."
    parser.add_argument(
        "files", metavar="FILE", type=Path, nargs="+", help="a motion, NAME.safetensors"
    )


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from ..motion_file.describe import describe_motion
    from ..motion_file.file import load_motion_file
    from .output import tell

    for number, file in enumerate(args.files):
        tell("\n" * (number > 0) + describe_motion(load_motion_file(file)))
