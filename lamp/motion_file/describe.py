"""A readable summary of a motion file."""

from __future__ import annotations

from ..method.architecture import describe_family
from ..method.motion import TRAINED
from ..plain import plain
from .config import MotionConfig
from .file import MotionFile
from .provenance import LICENSE_KEY, SOURCE_KEY, parents, scores, starts

_LISTED_CAPTIONS = 8
# Characters; text encoders read a few hundred.
_LONGEST_FACT, _LONGEST_CAPTION = 1000, 300


def describe_motion(file: MotionFile) -> str:
    """What a motion is, how it was made and how to run it, one fact per line.

    Facts are text from the file, and cannot start a line of their own.
    """
    config = file.config
    facts = {
        "Motion": file.name,
        "Prompt": config.trigger or "not recorded",
        "For": f"{describe_family(config.family)} checkpoints",
        "Trained on": _trained_on(config),
        "Training": f"{config.steps} steps, learning rate {config.learning_rate:g}, "
        f"seed {config.seed}",
        "Base model": config.base_model or "not recorded",
        "GroupNorm": config.groupnorm,
        "Parameters": _count(file),
        "License": file.metadata.get(LICENSE_KEY, "not recorded"),
    }
    if measured := scores(file.metadata):
        facts["Measured"] = f"{measured} (lower is better)"
    begun = starts(file.metadata)
    if begun:
        facts["Started from"] = begun
    for name, origin in (
        ("Merged from", parents(file.metadata)),
        ("Converted from", file.metadata.get(SOURCE_KEY)),
    ):
        if origin:
            facts[name] = origin
            if not begun:  # else it is the first motion of those that came before
                facts.pop("Training", None)
    lines = [f"{name}: {plain(fact, _LONGEST_FACT)}" for name, fact in facts.items()]
    if config.captions:
        lines.append(f"Captions ({len(config.captions)} clips):")
        lines += [
            f"  {plain(caption, _LONGEST_CAPTION)}"
            for caption in config.captions[:_LISTED_CAPTIONS]
        ]
        if len(config.captions) > _LISTED_CAPTIONS:
            lines.append("  ...")
    return "\n".join(lines)


def _trained_on(config: MotionConfig) -> str:
    size = f"{config.width} x {config.height}" if config.width and config.height else ""
    frames = f"{config.frames} frames" if config.frames else "frames" if size or config.fps else ""
    known = f"{frames} of {size}" if size else frames
    if not known:
        return "not recorded"
    return f"{known} at {config.fps:g} fps" if config.fps else f"{known}, frame rate not recorded"


def _count(file: MotionFile) -> str:
    counts = dict.fromkeys(TRAINED, 0)
    for name, tensor in file.state.items():
        for part in TRAINED:
            if f".{part}." in name:
                counts[part] += tensor.numel()
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    return f"{sum(counts.values()):,} trained ({parts})"
