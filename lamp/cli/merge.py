"""`python -m lamp merge`: combine two motions in one file."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

NAME = "merge"
HELP = "merge two motions, each with a weight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = "Merge two motions that were trained for the same kind of model."
    parser.add_argument("first", metavar="FIRST", type=Path, help="a motion, NAME.safetensors")
    parser.add_argument("second", metavar="SECOND", type=Path, help="another motion")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--weights",
        metavar=("W1", "W2"),
        nargs=2,
        type=float,
        default=(0.5, 0.5),
        help="strength of each in the result, 1 is as trained (default: 0.5 0.5)",
    )


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from ..motion_file.describe import describe_motion
    from ..motion_file.file import load_motion_file
    from ..motion_file.merge import merge_motions
    from ..motion_file.provenance import save_motion_file
    from .output import new_file, tell
    from .terminal import beside_the_result

    out = new_file(args.out)
    first, second = load_motion_file(args.first), load_motion_file(args.second)
    with beside_the_result() as terminal:
        told = partial(terminal.progress, "merging")
        merged = merge_motions(first, second, tuple(args.weights), told)
    out = save_motion_file(out, merged)
    tell(describe_motion(load_motion_file(out)))
