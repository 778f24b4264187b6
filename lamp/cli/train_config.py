"""What a training's TOML file may say, and the settings that come of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from ..clips.settings import ClipSettings
from ..errors import LampError
from ..files.names import is_plain_name
from ..method.motion import GROUPNORM_MODES
from ..training.recipe import (
    OPTIMIZERS,
    PRECISIONS,
    PRESETS,
    QUERY_DECAYS,
    RATE_SCHEDULES,
    TrainConfig,
    preset,
)
from ..training.session import SaveConfig
from .config_file import ConfigFile, Tables

TOY = "toy"
NONE, LATEST = "none", "latest"

_AUTOMATIC = ("precision", "checkpointing", "device")
_RECIPE = get_type_hints(TrainConfig)
del _RECIPE["frames"]  # those of the clips
del _RECIPE["gradient_checkpointing"]  # a choice with auto, named checkpointing

SCHEMA: dict[str, dict[str, Any]] = {
    "base": {"path": str, "tokenizer": str},
    "data": {"folder": str, "prompt": str, **get_type_hints(ClipSettings)},
    "recipe": {
        "preset": PRESETS,
        **_RECIPE,
        "rate_schedule": RATE_SCHEDULES,
        "optimizer": OPTIMIZERS,
        "query_decay": QUERY_DECAYS,
        "groupnorm": GROUPNORM_MODES,
        "precision": ("auto", *PRECISIONS),
        "checkpointing": ("auto", "on", "off"),
        "device": ("auto", "cuda", "mps", "cpu"),
    },
    "output": {
        "name": str,
        "folder": str,
        **get_type_hints(SaveConfig),
        "sample_guidance": float,
        "resume": str,
        "cache": str,
    },
}


@dataclass(frozen=True)
class RunSettings:
    """Everything that a training needs to know; `auto` is settled where the device is known.

    - ``base``: a .safetensors file, a diffusers folder, or `toy`; ``tokenizer``: a folder or None;
    - ``config``: in fp32 and without checkpointing, until they are settled;
    - ``resume``: `none`, `latest`, or a state's path; ``cache``: a folder or None.
    """

    base: str | Path
    tokenizer: Path | None
    clips_folder: Path
    prompt: str
    clips: ClipSettings
    config: TrainConfig
    precision: str
    checkpointing: str
    device: str
    name: str
    folder: Path
    save_config: SaveConfig
    sample_guidance: float
    resume: str | Path
    cache: Path | None


def read_settings(path: Path, changes: list[str]) -> RunSettings:
    """The settings of a TOML file with those of `--set` over them.

    Raises:
        LampError: something in it is wrong or missing, named by table, key and line.
    """
    file = ConfigFile(path, changes, SCHEMA)
    base = file.required("base", "path", "give a .safetensors file, a diffusers folder, or 'toy'")
    file.required("data", "folder", "give the folder that holds the clips")
    data, recipe, output = (dict(file.tables[name]) for name in ("data", "recipe", "output"))
    clips = file.made("data", _clip_settings)
    automatic = {name: recipe.get(name, "auto") for name in _AUTOMATIC}
    return RunSettings(
        base=TOY if base == TOY else _existing(file, "base", "path"),
        tokenizer=_existing(file, "base", "tokenizer") if file.has("base", "tokenizer") else None,
        clips_folder=_existing(file, "data", "folder"),
        prompt=data.get("prompt", ""),
        clips=clips,
        config=file.made("recipe", _train_config),
        **automatic,
        name=_name(file),
        folder=file.file("output", "folder", "output"),
        save_config=_upkeep(file, output),
        sample_guidance=output.get("sample_guidance", 7.5),
        resume=_resume(file),
        cache=file.file("output", "cache") if file.has("output", "cache") else None,
    )


def _own(values: dict[str, Any], kind: type) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _clip_settings(tables: Tables) -> ClipSettings:
    return ClipSettings(**_own(tables["data"], ClipSettings))


def _train_config(tables: Tables) -> TrainConfig:
    recipe = {name: value for name, value in tables["recipe"].items() if name not in _AUTOMATIC}
    chosen = preset(recipe.pop("preset", PRESETS[0]), recipe.get("steps", TrainConfig.steps))
    frames = _clip_settings(tables).frames
    return TrainConfig(**{"frames": frames, **chosen, **recipe})


def _existing(file: ConfigFile, table: str, key: str) -> Path:
    path = file.file(table, key)
    if not path.exists():
        raise LampError(f"{file.where(table, key)} is '{path}', and there is no such file.")
    return path


def _name(file: ConfigFile) -> str:
    """A name below the output folder; its parts may be folders."""
    name: str = file.tables["output"].get("name", "motion")
    if not is_plain_name(name):
        raise LampError(
            f"{file.where('output', 'name')} is '{name[:100]}': use a name such as 'horse' or "
            "'horses/run', without '..', a leading '/', a mark such as ':' or '?', or a dot at the "
            "end."
        )
    return name


def _upkeep(file: ConfigFile, output: dict[str, Any]) -> SaveConfig:
    save_config = SaveConfig(**_own(output, SaveConfig))
    for name, least in (("save_every", 0), ("keep", 1), ("sample_every", 0)):
        if getattr(save_config, name) < least:
            raise LampError(
                f"{file.where('output', name)} is {getattr(save_config, name)}: "
                f"choose {least} or more."
            )
    return save_config


def _resume(file: ConfigFile) -> str | Path:
    resume = file.tables["output"].get("resume", NONE)
    return resume if resume in (NONE, LATEST) else _existing(file, "output", "resume")
