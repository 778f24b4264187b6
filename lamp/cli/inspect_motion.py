"""`python -m lamp inspect`: summarise a motion file."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "inspect"
HELP = "show how a motion was trained and how to run it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = "Print a summary of a motion file."
    parser.add_argument("file", metavar="FILE", type=Path, help="a motion, NAME.safetensors")


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from ..motion_file.describe import describe_motion
    from ..motion_file.file import load_motion_file
    from .output import tell

    tell(describe_motion(load_motion_file(args.file)))
