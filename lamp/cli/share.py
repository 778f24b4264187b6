"""`python -m lamp share`: write what a sharing site wants into one folder."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

NAME = "share"
HELP = "write a motion, a preview and a page for a sharing site"
_WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
EXAMPLE = "02 Animate a picture.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = """\
Write a folder to upload: the compact motion file, an animated preview, and README.md with training
data, settings and license. Motion and preview hold an example workflow. The workflow that trained
the motion is left out. Look through README.md before you publish it."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a motion, NAME.safetensors")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder to write")
    parser.add_argument(
        "--preview",
        type=Path,
        metavar="VIDEO",
        help="an animated WebP, GIF or picture (default: the newest sample of its training, in a "
        "folder of its name beside it or in ComfyUI's output/lamp_training)",
    )
    parser.add_argument("--license", default="", metavar="NAME", help="such as CC-BY-4.0")
    parser.add_argument("--full", action="store_true", help="do not compress the motion")


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    from ..errors import LampError
    from ..files.atomic import write_file
    from ..motion_file.card import motion_card
    from ..motion_file.compress import SIZE
    from ..motion_file.encoding import RANK_KEY
    from ..motion_file.file import copy_motion, load_motion_file
    from ..motion_file.provenance import LICENSE_KEY, save_motion_file
    from .output import free, new_file, tell
    from .terminal import beside_the_result

    file = load_motion_file(args.file)
    if args.license:
        file = replace(file, metadata={**file.metadata, LICENSE_KEY: args.license})
    names = [new_file(args.folder / file.name).name, f"{args.file.stem}.webp", "README.md"]
    for name in names:
        free(args.folder / name)
    source = args.preview or newest_sample(args.file, file.config.steps)
    frames = None if source is None else read_preview(source)
    workflow = json.dumps(example_workflow(file))
    if frames is not None and "modelspec.thumbnail" not in file.metadata:
        thumbnail = {"modelspec.thumbnail": thumbnail_of(frames)}
        file = replace(file, metadata={**file.metadata, **thumbnail})
    # Moved into place when all is written, so that the command can be repeated after a failure.
    part = args.folder / ".lamp_share.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        written, extra = part / file.name, {"workflow": workflow}
        if RANK_KEY in file.metadata and not args.full:  # compact, and coded again it would lose
            copy_motion(args.file, written, file.metadata, extra)
        else:
            size = 1.0 if args.full else SIZE
            with beside_the_result() as terminal:
                told = partial(terminal.progress, "compressing")
                save_motion_file(written, file, size=size, progress=told, extra=extra)
        size_text = f"{written.stat().st_size / 1e6:.1f} MB"
        if frames is None:
            names.pop(1)
        else:
            write_preview(part / names[1], frames, workflow)
        page = motion_card(file, "" if frames is None else names[1], size_text)
        write_file(part / "README.md", lambda path: path.write_text(page, "utf-8"))
        for name in names:
            (part / name).rename(free(args.folder / name))
    except OSError as error:
        raise LampError(f"{args.folder} cannot be written ({error}).") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    tell(f"{args.folder}: {', '.join(names)}, {size_text}")
    if source is None:
        tell("There is no preview, as no sample of its training was found: give --preview.")
    else:
        tell(f"The preview is {source}.")
    if not file.metadata.get(LICENSE_KEY):
        tell("The license is not recorded: give --license, such as --license CC-BY-4.0.")


def newest_sample(motion: Path, step: int) -> Path | None:
    """The newest sample up to a step, in the folder of the run that wrote a motion file."""
    from ..training.compare import sample_of

    found = (sample_of(folder, step) for folder in _run_folders(motion.absolute()))
    return next(filter(None, found), None)


def _run_folders(motion: Path) -> Iterator[Path]:
    """Beside the file, and in the output folder of the ComfyUI that it is in."""
    run = re.sub(r"-(best|step\d+)(-stopped)?(_\d+)?$", "", motion.stem)
    yield motion.parent / run
    for host in motion.parents:
        motions = host / "models" / "lamp_motion"
        if motion.is_relative_to(motions):
            below = motion.parent.relative_to(motions)
            yield host / "output" / "lamp_training" / below / run


Frames = list[tuple[Any, int]]
"""Pictures and the milliseconds that each is shown."""


def read_preview(path: Path) -> Frames:
    """The frames of a picture or animation.

    Raises:
        LampError: it cannot be read.
    """
    from PIL import Image, ImageSequence

    from ..errors import LampError

    try:
        with Image.open(path) as image:
            return [
                (frame.convert("RGB"), round(frame.info.get("duration", 100)) or 100)
                for frame in ImageSequence.Iterator(image)
            ]
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise LampError(
            f"The preview {path.name} cannot be read ({error}): use a WebP, GIF, PNG or JPEG."
        ) from error


def write_preview(path: Path, frames: Frames, workflow: str) -> Path:
    """An animated WebP with the workflow in its EXIF data, where ComfyUI looks for it."""
    from PIL import Image

    from ..files.atomic import write_file

    (first, _), *others = frames
    exif = Image.Exif()
    exif[0x010F] = f"workflow:{workflow}"
    options = {
        "save_all": True,
        "append_images": [picture for picture, _ in others],
        "duration": [duration for _, duration in frames],
        "loop": 0,
        "quality": 85,
        "exif": exif,
    }
    return write_file(path, lambda part: first.save(part, format="WEBP", **options))


def thumbnail_of(frames: Frames) -> str:
    """The middle frame, as the header holds it."""
    import numpy as np
    import torch

    from ..clips.images import thumbnail_uri

    picture = np.asarray(frames[len(frames) // 2][0])
    return thumbnail_uri(torch.from_numpy(picture.copy())[None] / 255)


def example_workflow(file: Any) -> dict[str, Any]:
    """The bundled workflow that animates a picture, with this motion, its words and its size."""
    config = file.config
    canvas: dict[str, Any] = json.loads((_WORKFLOWS / EXAMPLE).read_text(encoding="utf-8"))
    nodes = {node["type"]: node for node in reversed(canvas["nodes"])}  # the first of each type
    nodes["LAMP_LoadMotion"]["widgets_values"][0] = file.name
    if config.trigger:
        nodes["CLIPTextEncode"]["widgets_values"][0] = config.trigger
    size = nodes["LAMP_FirstFrameCondition"]["widgets_values"]
    for place, value in enumerate((config.width, config.height, config.frames)):
        size[place] = value or size[place]
    if config.fps:
        nodes["CreateVideo"]["widgets_values"][0] = config.fps
    return canvas
