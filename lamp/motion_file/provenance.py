"""Provenance of merged, converted and further trained motions, kept in the header whenever they
are saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..files.strict_json import read_json
from .file import MotionFile, save_motion

PARENTS_KEY = "lamp.parents"
"""Header entry of a merged motion: JSON, a list of `{"name", "weight", "prompt"}`."""
SOURCE_KEY = "lamp.source"
"""Header entry of a converted motion: its source, as readable text."""
START_KEY = "lamp.start"
"""Header entry of a motion whose training started from another one: JSON, a list of `{"name",
"steps", "prompt", "base_model"}`, the newest first."""
TRAINING_KEY = "lamp.training"
"""Header entry of a trained motion: JSON of all settings of its training."""
CARD_KEY = "lamp.card"
"""Header entry of a motion trained with a preset for a graphics card: JSON of what it decided."""
SCORES_KEY = "lamp.scores"
"""Header entry of a trained motion: JSON of its measures, see `lamp.training.stopping`."""
LICENSE_KEY = "modelspec.license"
_KEPT = (PARENTS_KEY, SOURCE_KEY, START_KEY, TRAINING_KEY, CARD_KEY, SCORES_KEY)
_OF_TRAINING = (TRAINING_KEY, CARD_KEY, SCORES_KEY)
_MOST_STARTS = 32


def save_motion_file(
    path: Path,
    file: MotionFile,
    *,
    dtype: torch.dtype = torch.float16,
    size: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """`save_motion` to a new file, keeping the licence, thumbnail and provenance of the motion.

    Args:
        extra: further header entries.
    """
    return save_motion(
        path,
        file.state,
        file.config,
        dtype=dtype,
        size=size,
        license_name=file.metadata.get(LICENSE_KEY, ""),
        thumbnail=file.metadata.get("modelspec.thumbnail", ""),
        extra={**history(file.metadata), **(extra or {})},
        progress=progress,
        new=True,
    )


def history(metadata: Mapping[str, str]) -> dict[str, str]:
    """The header entries to keep when a motion is saved again."""
    return {key: metadata[key] for key in _KEPT if key in metadata}


def scores(metadata: Mapping[str, str]) -> str:
    """`held out loss 0.12, sample motion 0.4`; empty if nothing was measured."""
    try:
        measured = read_json(metadata.get(SCORES_KEY, "{}"))
        return ", ".join(f"{str(n).replace('_', ' ')} {value:.3g}" for n, value in measured.items())
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError):
        return "not readable"


def parents(metadata: Mapping[str, str]) -> str:
    """`a.safetensors (0.5), b.safetensors (0.5)`; empty if the motion is not merged."""
    try:
        entries = read_json(metadata.get(PARENTS_KEY, "[]"))
        return ", ".join(f"{entry['name']} ({entry['weight']:g})" for entry in entries)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return "not readable"


def origin_of(start: MotionFile) -> dict[str, str]:
    """The header entries of a motion whose training starts from `start`. It is derived from that
    motion, so its licence stays."""
    config = start.config
    entry = {
        "name": start.name,
        "steps": config.steps,
        "prompt": config.prompt,
        "base_model": config.base_model,
    }
    earlier = [] if (found := _starts(start.metadata)) is None else found
    entries = json.dumps([entry, *earlier][:_MOST_STARTS], ensure_ascii=False)
    kept = {k: v for k, v in history(start.metadata).items() if k not in _OF_TRAINING}
    kept[START_KEY] = entries
    license_name = start.metadata.get(LICENSE_KEY, "")
    return {**kept, LICENSE_KEY: license_name} if license_name else kept


def starts(metadata: Mapping[str, str]) -> str:
    """`a.safetensors (2000 steps), b.safetensors (30000 steps)`, the newest first; empty if the
    training started from nothing."""
    entries = _starts(metadata)
    if entries is None:
        return "not readable"
    return ", ".join(f"{entry['name']} ({entry['steps']} steps)" for entry in entries)


def first_start(metadata: Mapping[str, str]) -> str:
    """The name of the motion file that the training started from, or an empty string."""
    entries = _starts(metadata)
    return entries[0]["name"] if entries else ""


def _starts(metadata: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """The entries, checked, as a header comes from strangers; None if they are damaged."""
    try:
        entries = read_json(metadata.get(START_KEY, "[]"))
        well = type(entries) is list and all(
            type(entry) is dict and type(entry["name"]) is str and type(entry["steps"]) is int
            for entry in entries
        )
    except (KeyError, ValueError, OverflowError, RecursionError):
        return None
    return entries if well else None
