"""Provenance of merged and converted motions, kept in the header whenever they are saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..files.strict_json import read_json
from .file import MotionFile, save_motion

PARENTS_KEY = "lamp.parents"
"""Header entry of a merged motion: JSON, a list of `{"name", "weight", "prompt"}`."""
SOURCE_KEY = "lamp.source"
"""Header entry of a converted motion: its source, as readable text."""
LICENSE_KEY = "modelspec.license"


def save_motion_file(
    path: Path,
    file: MotionFile,
    *,
    dtype: torch.dtype = torch.float16,
    size: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """`save_motion` to a new file, keeping the licence, thumbnail and provenance of the motion."""
    return save_motion(
        path,
        file.state,
        file.config,
        dtype=dtype,
        size=size,
        license_name=file.metadata.get(LICENSE_KEY, ""),
        thumbnail=file.metadata.get("modelspec.thumbnail", ""),
        extra=history(file.metadata),
        progress=progress,
        new=True,
    )


def history(metadata: Mapping[str, str]) -> dict[str, str]:
    """The header entries to keep when a motion is saved again."""
    return {key: metadata[key] for key in (PARENTS_KEY, SOURCE_KEY) if key in metadata}


def parents(metadata: Mapping[str, str]) -> str:
    """`a.safetensors (0.5), b.safetensors (0.5)`; empty if the motion is not merged."""
    try:
        entries = read_json(metadata.get(PARENTS_KEY, "[]"))
        return ", ".join(f"{entry['name']} ({entry['weight']:g})" for entry in entries)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return "not readable"
