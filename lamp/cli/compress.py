"""`python -m lamp compress`: reduce a motion to less than a tenth of its size."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

NAME = "compress"
HELP = "reduce a motion to less than a tenth of its size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = """\
Compress a motion to low-rank factors, quantized to few bits. The result loads like any other
motion and samples as fast. Compression is lossy: keep the full file, too."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a motion, NAME.safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write")
    parser.add_argument(
        "--size",
        type=float,
        metavar="SHARE",
        help="size of the compact tensors as a share of the full ones, above 0 and at most 1, "
        "not counting the header (default: 0.085)",
    )


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from ..motion_file.compress import SIZE
    from ..motion_file.file import load_motion_file
    from ..motion_file.provenance import save_motion_file
    from .output import new_file, tell
    from .terminal import beside_the_result

    out = new_file(args.out)
    file = load_motion_file(args.file)
    size = SIZE if args.size is None else args.size
    with beside_the_result() as terminal:
        told = partial(terminal.progress, "compressing")
        out = save_motion_file(out, file, size=size, progress=told)
    before, after = (path.stat().st_size for path in (args.file, out))
    tell(f"{out.name}: {after / 1e6:.1f} MB, {after / before:.1%} of {before / 1e6:.1f} MB")
