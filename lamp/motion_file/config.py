"""The configuration in a motion file's header (`lamp.config`): how a motion was made and runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import MotionFileError
from ..files.strict_json import read_json
from ..method.motion import GROUPNORM_MODES
from ..plain import log

FORMAT = 2
"""The newest format that is read: 1 holds plain tensors, 2 is compact."""
_MAX_CONFIG = 2**19  # characters; parsed, JSON of empty lists takes twenty times as many bytes
FILLERS = frozenset("a an the of in on at to and near with is are".split())
_MEASURED = ("frames", "width", "height", "fps")
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_MEASURED[:-1], (0, 10**6)),
    "fps": (0, 1e6),
    "steps": (0, 10**9),
    "seed": (-(2**63), 2**64),
    "learning_rate": (-1e6, 1e6),
}


@dataclass(frozen=True)
class MotionConfig:
    """How a motion was made and how to run it.

    ``frames``, ``width``, ``height``, ``fps``: of the training windows; 0, and left out of the
    file, where unknown or different from clip to clip.
    ``importance``: by tensor, the mean square of its gradient in training (the diagonal of the
    Fisher information), scaled to a maximum of 1. Empty where unknown, and in compact files, which
    were made with it.
    """

    family: str
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    groupnorm: str = "pooled"
    prompt: str = ""
    captions: list[str] = field(default_factory=list)
    steps: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    base_model: str = ""
    base_hash: str = ""
    importance: dict[str, float] = field(default_factory=dict)

    @property
    def trigger(self) -> str:
        """The words to use in a prompt: the prompt of all clips, or the words that all captions
        share, without articles and prepositions."""
        if self.prompt or not self.captions:
            return self.prompt
        first, *others = (re.findall(r"\w+", caption.lower()) for caption in self.captions)
        shared = set(first).intersection(*others) - FILLERS
        return " ".join(word for word in first if word in shared)

    def __post_init__(self) -> None:
        if self.groupnorm not in GROUPNORM_MODES:
            raise MotionFileError(
                f"The motion has groupnorm '{self.groupnorm}', this version knows "
                f"{', '.join(GROUPNORM_MODES)}. Update LAMP Motion."
            )


def config_text(config: MotionConfig) -> str:
    """The JSON of a configuration, without captions where these are too long."""
    known = asdict(config)
    known = {name: value for name, value in known.items() if value or name not in _MEASURED}
    text = json.dumps(known, ensure_ascii=False)
    if len(text) <= _MAX_CONFIG:
        return text
    log.warning("The captions are too long for the motion file and are not saved in it.")
    return json.dumps({**known, "captions": []}, ensure_ascii=False)


def read_config(file: str, metadata: Mapping[str, str]) -> MotionConfig:
    """The configuration from a header's metadata, with every field's type and range checked.

    Raises:
        MotionFileError: it is not a motion, of a newer format, or damaged.
    """
    if "lamp.format" not in metadata:
        raise MotionFileError(
            f"{file} is not a LAMP motion (its header has no 'lamp.format'). Load LoRAs, "
            "checkpoints and motion modules of other tools with their own loaders."
        )
    version = metadata["lamp.format"]
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > FORMAT:
        raise MotionFileError(
            f"{file} has motion format '{version[:20]}', this version reads up to {FORMAT}. "
            "Update LAMP Motion."
        )
    try:
        text = metadata["lamp.config"]
        if len(text) > _MAX_CONFIG:
            raise ValueError(f"it has {len(text):,} characters")
        raw = read_json(text)
        known = {f.name: raw[f.name] for f in fields(MotionConfig) if f.name in raw}
        return MotionConfig(**_checked(known))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MotionFileError(
            f"The header of {file} is damaged ('lamp.config': {str(error)[:100]}). Download it "
            "again."
        ) from error


def _checked(raw: dict[str, Any]) -> dict[str, Any]:
    """Types and ranges: a header comes from strangers."""
    defaults = MotionConfig(family="")
    for name, value in raw.items():
        wanted = type(getattr(defaults, name))
        if wanted is float and type(value) is int:
            raw[name] = float(value)
        elif type(value) is not wanted:
            raise TypeError(f"{name} is not of type {wanted.__name__}")
        if wanted is str:
            value.encode()  # a lone surrogate, which JSON allows, cannot be displayed
    for name, (low, high) in _RANGES.items():
        if name in raw and not low <= raw[name] <= high:
            raise ValueError(f"{name} is out of range")
    if any(type(caption) is not str for caption in raw.get("captions", [])):
        raise TypeError("captions holds something other than text")
    "".join(raw.get("captions", [])).encode()
    for name, value in raw.get("importance", {}).items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"importance of {name[:100]} is out of range")
    return raw
