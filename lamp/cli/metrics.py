"""`python -m lamp metrics`: how good videos are, in numbers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ClipError
from ..plain import plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..metrics import Metrics

NAME = "metrics"
HELP = "measure videos as the paper does, and by optical flow"

_MOST_BYTES = 2**31  # of a decoded video
_COLUMNS = {
    "text_alignment": ("alignment", ".2f"),
    "frame_consistency": ("consistency", ".2f"),
    "motion": ("motion px", ".2f"),
    "background": ("background dB", ".1f"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command.add_arguments`."""
    parser.description = """\
Measure videos: text alignment, frame consistency and diversity as in section 4.2 of the paper, all
times 100, and by optical flow how much they move and how still their ground stays."""
    parser.add_argument(
        "videos",
        metavar="VIDEO",
        nargs="+",
        type=Path,
        help="a video, an animated picture, or a folder of pictures",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        help="what the videos ought to show, for text alignment; once for all, or once for each",
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="a CLIP model of transformers or open_clip, for the paper's three measures; nothing "
        "is downloaded",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(args: argparse.Namespace) -> None:
    """See `Command.run`."""
    import json

    from ..metrics import measure
    from .output import tell
    from .terminal import beside_the_result

    see = read = None
    if args.clip is not None:
        from ..hosts.diffusers.clip_model import load_clip

        see, read = load_clip(args.clip)
    videos = [_read(path) for path in args.videos]
    names = [path.name or str(path) for path in args.videos]
    with beside_the_result() as terminal:
        metrics = measure(
            videos,
            names,
            args.prompt,
            see,
            read,
            lambda done, total: terminal.progress("measuring videos", done, total),
        )
    if args.json:
        sys.stdout.write(json.dumps(_as_json(metrics)) + "\n")  # ASCII, control characters escaped
    else:
        tell(_table(metrics))


def _read(path: Path) -> Tensor:
    """All frames of a video, ``f h w 3`` bytes."""
    import contextlib

    import torch

    from ..clips.decoding.choose import source_frames
    from ..clips.decoding.reader import reading

    frames: list[Tensor] = []
    with contextlib.closing(source_frames(path)) as source:
        for frame in source:
            with reading(path):
                picture = frame.load()
            if frames and picture.shape != frames[0].shape:
                raise ClipError(
                    f"The pictures in '{path.name}' differ in size: bring all to one size."
                )
            frames.append(picture)
            if len(frames) * picture.numel() > _MOST_BYTES:
                raise ClipError(
                    f"'{path.name}' is too long to measure: it takes more than "
                    f"{_MOST_BYTES / 2**30:.0f} GB of memory. Cut it, or make it smaller."
                )
    return torch.stack(frames)


def _as_json(metrics: Metrics) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "videos": [asdict(video) for video in metrics.videos],
        "mean": {name: metrics.mean(name) for name in _COLUMNS},
        "diversity": metrics.diversity,
        "video_similarity": metrics.video_similarity,
    }


def _table(metrics: Metrics) -> str:
    from ..metrics import SIMILARITY

    rows = [["video", *(title for title, _ in _COLUMNS.values())]]
    for video in metrics.videos:
        rows.append([plain(video.name), *(_cell(name, getattr(video, name)) for name in _COLUMNS)])
    if len(metrics.videos) > 1:
        rows.append(["mean", *(_cell(name, metrics.mean(name)) for name in _COLUMNS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    if metrics.diversity is not None:
        lines += ["", f"diversity {metrics.diversity:.2f} (lower: the videos differ more)"]
    if metrics.video_similarity is not None:
        lines.append(f"video similarity {metrics.video_similarity:.2f} ({SIMILARITY})")
    if metrics.missing:
        lines += ["", *dict.fromkeys(metrics.missing.values())]
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    return "-" if value is None else format(value, _COLUMNS[name][1])
