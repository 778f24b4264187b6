"""The TOML file of a training run: its tables and keys, and the settings made from them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ..clips.settings import ClipSettings
from ..errors import LampError
from ..files.names import is_plain_name
from ..training.recipe import RunChoices, SaveConfig, TrainConfig, preset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOY = "toy"
NONE, LATEST = "none", "latest"

_LARGEST = 20_000
"""Bytes. Parsing time grows with the square of a dotted key's length: 40 kB took 6 seconds."""
_SHOWN = 100  # characters of a value in a message
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

T = TypeVar("T")


def _keys(config: type, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """A settings class as keys of a table, with its defaults, help texts, ranges and choices."""
    hints = get_type_hints(config)
    keys: dict[str, Any] = {}
    for each in fields(config):
        if each.name in leave_out:
            continue
        kind, known = hints[each.name], each.metadata
        low, high = known.get("low"), known.get("high")
        if kind is int and low is None:
            low, high = -(2**63), 2**63
        if known.get("choices"):
            kind = Literal[known["choices"]]
        elif get_origin(kind) is tuple:
            kind = Annotated[kind, Field(strict=False)]  # TOML has lists only
        keys[each.name] = (
            kind,
            Field(each.default, description=known.get("help"), ge=low, le=high),
        )
    return keys


def _table(name: str, /, **keys: Any) -> type[BaseModel]:
    return create_model(name, __config__=_STRICT, **keys)


TABLES: Mapping[str, type[BaseModel]] = {
    "base": _table(
        "base",
        path=(str, Field(description="a .safetensors file, a diffusers folder, or 'toy'")),
        tokenizer=(str, ""),
    ),
    "data": _table(
        "data",
        folder=(str, Field(description="the folder with the clips")),
        prompt=(str, ""),
        **_keys(ClipSettings),
    ),
    "recipe": _table(
        "recipe",
        **_keys(TrainConfig, ("frames", "precision", "gradient_checkpointing")),
        **_keys(RunChoices),
    ),
    "output": _table(
        "output",
        name=(str, "motion"),
        folder=(str, "output"),
        cache=(str, ""),
        resume=(str, NONE),
        **_keys(SaveConfig),
    ),
}
"""Table -> model with a field for each key."""
_File = _table("file", **{name: (model, ...) for name, model in TABLES.items()})


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run.

    - ``base``: a .safetensors file, a diffusers folder, or `toy`; ``tokenizer``: a folder or None;
    - ``config``: in fp32 and without gradient checkpointing, until ``choices`` are resolved;
    - ``card``: the settings that the card decided, as they are written into the file;
    - ``given``: the keys of `[data]` and `[recipe]` that are set explicitly;
    - ``resume``: `none`, `latest`, or a state's path; ``cache``: a folder or None.
    """

    base: str | Path
    tokenizer: Path | None
    clips_folder: Path
    prompt: str
    clips: ClipSettings
    config: TrainConfig
    choices: RunChoices
    name: str
    folder: Path
    save_config: SaveConfig
    resume: str | Path
    cache: Path | None
    given: frozenset[str] = frozenset()
    card: str = ""


def read_settings(path: Path, changes: list[str]) -> RunSettings:
    """Read a TOML file.

    Args:
        changes: `TABLE.KEY=VALUE`, which replace values of the file; a text needs no quotes.

    Raises:
        LampError: the file cannot be read, or a key is unknown, missing or has a wrong value.
    """
    file = _ConfigFile(path, changes)
    recipe, output = file["recipe"], file["output"]
    clips = file.made("data", ClipSettings)
    chosen = preset(recipe.preset, recipe.steps)
    config = file.made("recipe", TrainConfig, skip=RunChoices, frames=clips.frames, **chosen)
    if config.start_from:
        config = replace(config, start_from=str(file.full("recipe", "start_from")))
    if not is_plain_name(output.name):
        raise LampError(
            f"{file.where('output', 'name')} is '{output.name[:_SHOWN]}': use a name such as "
            "'horse' or 'horses/run', without '..', a leading '/', characters such as ':' or '?', "
            "or a dot at the end."
        )
    return RunSettings(
        base=TOY if file["base"].path == TOY else file.existing("base", "path"),
        tokenizer=file.existing("base", "tokenizer") if file["base"].tokenizer else None,
        clips_folder=file.existing("data", "folder"),
        prompt=file["data"].prompt,
        clips=clips,
        # Precision and the like follow from the choices once the device is known.
        config=config,
        choices=RunChoices(
            **{each.name: getattr(recipe, each.name) for each in fields(RunChoices)}
        ),
        name=output.name,
        folder=file.full("output", "folder"),
        save_config=file.made("output", SaveConfig),
        resume=output.resume
        if output.resume in (NONE, LATEST)
        else file.existing("output", "resume"),
        cache=file.full("output", "cache") if output.cache else None,
        given=frozenset({*file["data"].model_fields_set, *recipe.model_fields_set}),
    )


class _ConfigFile:
    """The checked tables of a file, with `--set` applied."""

    def __init__(self, path: Path, changes: list[str]) -> None:
        self._path = path
        raw = {**{name: {} for name in TABLES}, **_parse(path)}
        self._changed = [_change(raw, change) for change in changes]
        try:
            self._file = _File.model_validate(raw)
        except ValidationError as error:
            # A misspelt key before the one that is missing for it.
            found = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
            raise LampError(_explain(found, raw, self.where)) from None

    def __getitem__(self, table: str) -> Any:
        return getattr(self._file, table)

    def where(self, table: str, key: str = "") -> str:
        """Names a key in a message."""
        if (table, key) in self._changed:
            return f"--set {table}.{key}"
        return f"{self._path.name}: [{table}] {key}".strip()

    def made(self, table: str, kind: type[T], skip: type | None = None, **others: Any) -> T:
        """The settings `kind` of a table; the keys given there go over `others`, but for those
        that are fields of `skip`."""
        given = self[table].model_dump(exclude_unset=True)
        names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
        if skip is not None:
            names -= {each.name for each in fields(skip)}
        try:
            return kind(**others | {name: given[name] for name in names & {*given}})
        except LampError as error:
            changed = [key for home, key in self._changed if home == table and key in str(error)]
            raise LampError(f"{self.where(table, *changed[:1])}: {error}") from error

    def full(self, table: str, key: str) -> Path:
        """A path, relative to the folder of the file."""
        given = getattr(self[table], key)
        try:
            path = self._path.absolute().parent / Path(given).expanduser()
            path.exists()  # refuses names that are too long or hold a NUL
        except (OSError, ValueError, RuntimeError) as error:
            raise LampError(
                f"{self.where(table, key)} is {_show(given)}, which is not a path "
                f"({str(error)[:_SHOWN]})."
            ) from error
        return path

    def existing(self, table: str, key: str) -> Path:
        """As `full`, of a file or folder that must exist."""
        path = self.full(table, key)
        if not path.exists():
            raise LampError(f"{self.where(table, key)} is '{path}', which does not exist.")
        return path


def _parse(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise LampError(f"{path} has {size:,} bytes, more than {_LARGEST:,}: shorten it.")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise LampError(f"{path} does not exist: give the TOML file of the run.") from None
    except UnicodeDecodeError:
        raise LampError(f"{path} is not UTF-8 text: save it in that encoding.") from None
    except OSError as error:
        raise LampError(f"{path} cannot be read ({error}).") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, LampError):
            raise
        raise LampError(
            f"{path.name} is not valid TOML ({str(error)[:_SHOWN]}): quote texts, and write one "
            "KEY = VALUE per line."
        ) from error


def _change(raw: dict[str, Any], change: str) -> tuple[str, str]:
    """Put a `TABLE.KEY=VALUE` into the tables; returns table and key."""
    name, equals, text = change.partition("=")
    table, dot, key = (part.strip() for part in name.partition("."))
    if not equals or not dot or not isinstance(raw.get(table), dict):
        homes = [home for home, model in TABLES.items() if (key or table) in model.model_fields]
        example = f"{homes[0]}.{key or table}" if homes else "recipe.steps"
        raise LampError(
            f"--set {change[:_SHOWN]}: write TABLE.KEY=VALUE with a table of {', '.join(TABLES)}, "
            f"such as {example}=VALUE."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    raw[table] = {**raw[table], key: value}
    return table, key


def _explain(error: Any, raw: dict[str, Any], where: Any) -> str:
    """What pydantic found, with the key, its value and the nearest known key."""
    table, *keys = map(str, error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where(table, *keys[:1])} is unknown: {_nearest(table, *keys)}"
    if error["type"] == "missing" and len(keys) == 1:
        wanted = TABLES[table].model_fields[keys[0]].description
        return f"{where(table, keys[0])} is missing: give {wanted}."
    value = raw[table][keys[0]] if keys else raw[table]
    message = error["msg"].replace("Input", "it").replace("Field required", "a value is missing")
    return f"{where(table, *keys[:1])} is {_show(value)}, but {message}."


def _nearest(table: str, key: str = "") -> str:
    name = key or table
    known = list(TABLES[table].model_fields) if key else list(TABLES)
    homes = [home for home, model in TABLES.items() if name in model.model_fields]
    if homes:
        return f"it belongs to [{homes[0]}]."
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(known)}."


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return f"'{value[:_SHOWN]}'" if isinstance(value, str) else str(value)[:_SHOWN]
    except ValueError:  # too many digits for a decimal text
        return "a number of thousands of digits"
