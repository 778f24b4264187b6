"""`python -m lamp compress`: a motion in a tenth of its size."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

NAME = "compress"
HELP = "write a motion in the compact form, about a tenth of its size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = """\
Write a motion in the compact form: low-rank factors of 4 or 8 bits. It loads like any other and
samples as fast. What is left out cannot be had back: keep the full file, too."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a motion, NAME.safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--energy",
        type=float,
        metavar="SHARE",
        help="the share of each tensor that is kept, of its squared size; more makes a larger file "
        "(default: 0.88)",
    )


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from ..checkpoint import load_motion_file
    from ..compress import ENERGY
    from ..history import save_motion_file
    from .output import new_file

    out = new_file(args.out)
    energy = ENERGY if args.energy is None else args.energy
    save_motion_file(out, load_motion_file(args.file), energy=energy)
    before, after = (path.stat().st_size for path in (args.file, out))
    sys.stdout.write(
        f"{out.name}: {after / 1e6:.1f} MB, {after / before:.1%} of {before / 1e6:.1f} MB, with "
        f"{energy:.0%} of the energy\n"
    )
