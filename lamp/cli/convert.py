"""`python -m lamp convert`: an official LAMP checkpoint as a motion file."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

NAME = "convert"
HELP = "make a motion file of an official LAMP checkpoint"

_PRECISIONS = ("fp16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = """\
Make a motion file of what the official LAMP training wrote: a diffusers folder with unet/ in it.
The authors' code and weights are CC BY-NC 4.0, not for commercial use: the file says so."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the official folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="the motion file to write")
    parser.add_argument(
        "--base",
        required=True,
        metavar="CHECKPOINT",
        help="the image model that it was trained on, SD 1.4 for the authors' motions: a diffusers "
        "folder or a .safetensors file",
    )
    parser.add_argument("--prompt", default="", help="the words of the motion, 'a horse runs'")
    parser.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="fp16",
        help="of the file; fp32 keeps every bit of the official one (default: fp16)",
    )


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    import torch

    from ..hosts.diffusers.models import load_unet
    from ..method.architecture import base_hash
    from ..motion_file.convert import convert_official
    from ..motion_file.describe import describe_motion
    from ..motion_file.file import load_motion_file
    from ..motion_file.provenance import save_motion_file
    from .output import new_file, tell
    from .terminal import beside_the_result

    out = new_file(args.out)
    name, unet = load_unet(args.base)
    with beside_the_result() as terminal:
        file = convert_official(
            args.folder,
            unet,
            base_model=name,
            base_hash=base_hash(unet),
            prompt=args.prompt,
            progress=partial(terminal.progress, "converting"),
        )
    dtype = torch.float32 if args.precision == "fp32" else torch.float16
    out = save_motion_file(out, file, dtype=dtype)
    tell(describe_motion(load_motion_file(out)))
