"""The page of a motion for a sharing site: Markdown, with the metadata that model hubs read."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath
from typing import Any
from urllib.parse import quote

from ..files.strict_json import read_json
from ..method.architecture import describe_family
from ..plain import plain
from .file import MotionFile
from .provenance import LICENSE_KEY, SOURCE_KEY, TRAINING_KEY, parents, starts

_MOST_CAPTIONS = 100
_LONGEST = 300  # characters of a text from the file


def motion_card(file: MotionFile, preview: str = "", size: str = "") -> str:
    """The page of a motion. Texts from the file are escaped.

    Args:
        preview: file name of the preview, if there is one.
        size: of the file in the folder, in words.
    """
    config, license_name = file.config, file.metadata.get(LICENSE_KEY, "")
    title = file.name.removesuffix(".safetensors")
    facts = {
        "Prompt words": config.trigger,
        "Models": f"{describe_family(config.family)} checkpoints",
        "Video": _video(file),
        "File": f"{file.name}{f', {size}' if size else ''}",
        "Base model": config.base_model,
        "License": license_name or "not recorded",
        "Merged from": parents(file.metadata),
        "Converted from": file.metadata.get(SOURCE_KEY, ""),
        "Started from": starts(file.metadata),
    }
    example = "Open the motion file with Ctrl+O: it holds"
    if preview:
        example = "Drop the preview on the canvas, or open the motion file with Ctrl+O: both hold"
    picture = f"![Preview]({quote(preview)})\n\n" if preview else ""
    return (
        f"{_front_matter(license_name)}\n# {_escape(title)}\n\n"
        "A LAMP motion for ComfyUI: it animates a first frame.\n\n"
        f"{picture}{_table('Motion', facts)}\n## Use\n\n"
        f"1. Put `{_code(file.name)}` into `models/lamp_motion` and press R.\n"
        f"2. {example} an example workflow.\n"
        "3. Choose a first frame, and use the prompt words above.\n\n"
        f"## Training data\n\n{_captions(config.captions)}\n"
        f"## Training\n\n{_table('Setting', _settings(file))}"
    )


def _front_matter(license_name: str) -> str:
    known = license_name.lower() if re.fullmatch(r"[\w.+-]+", license_name) else "other"
    tags = "".join(f"- {tag}\n" for tag in ("lamp-motion", "comfyui", "image-to-video"))
    return f"---\nlicense: {known}\ntags:\n{tags}---\n"


def _video(file: MotionFile) -> str:
    config = file.config
    size = f"{config.width} x {config.height}" if config.width and config.height else ""
    rate = f"{config.fps:g} fps" if config.fps else ""
    frames = f"{config.frames} frames" if config.frames else ""
    return ", ".join(part for part in (frames, size, rate) if part)


def _captions(captions: list[str]) -> str:
    if not captions:
        return "Not recorded.\n"
    lines = [f"- {_escape(caption)}\n" for caption in captions[:_MOST_CAPTIONS]]
    more = len(captions) - len(lines)
    lines += [f"- and {more} more\n"] if more else []
    return f"{len(captions)} clips with these captions:\n\n{''.join(lines)}"


def _settings(file: MotionFile) -> dict[str, Any]:
    """All recorded settings, or the few that every motion file has."""
    config = file.config
    known: dict[str, Any] = {"groupnorm": config.groupnorm}
    if config.steps:  # else it was merged or converted
        rate = {"learning_rate": config.learning_rate, "seed": config.seed}
        known = {"steps": config.steps, **rate, **known}
    try:
        recorded = read_json(file.metadata.get(TRAINING_KEY, "{}"))
    except (ValueError, RecursionError):
        return known
    if type(recorded) is not dict:
        return known
    # The command line of earlier versions recorded the whole path, which is private.
    start = {"start_from": PureWindowsPath(str(recorded.get("start_from", ""))).name}
    steps = {"steps": config.steps} if config.steps else {}
    return {**known, **recorded, **start, **steps}


def _table(title: str, facts: dict[str, Any]) -> str:
    rows = [
        f"| {_escape(name)} | {_escape(fact)} |\n" for name, fact in facts.items() if fact != ""
    ]
    return f"| {title} | |\n|---|---|\n{''.join(rows)}"


def _escape(value: Any) -> str:
    """A text as plain Markdown text on one line: no markup, HTML, links or table cells."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", plain(value, _LONGEST))


def _code(value: str) -> str:
    return plain(value, _LONGEST).replace("`", "'")
