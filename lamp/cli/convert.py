"""`python -m lamp convert`: convert an official LAMP checkpoint to a motion file."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

NAME = "convert"
HELP = "convert an official LAMP checkpoint to a motion file"

_PRECISIONS = ("fp16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = """\
Convert the output of the official LAMP training, a diffusers folder with unet/ in it, to a motion
file. The authors' weights are CC BY-NC 4.0, not for commercial use; the file records that."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the official folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="the motion file to write")
    parser.add_argument(
        "--base",
        required=True,
        metavar="CHECKPOINT",
        help="the base checkpoint of the training (SD 1.4 for the authors' motions): a diffusers "
        "folder or a .safetensors file",
    )
    parser.add_argument("--prompt", default="", help="the motion prompt, such as 'a horse runs'")
    parser.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="fp16",
        help="of the file; fp32 is lossless (default: fp16)",
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
