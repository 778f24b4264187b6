"""Reading a TOML file of tables, with its mistakes named by table, key and line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from ..errors import LampError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Tables = dict[str, dict[str, Any]]
"""Table -> key -> value."""
Schema = Mapping[str, Mapping[str, Any]]
"""Table -> key -> what is wanted: str, int, float, bool, a Literal or the choices themselves, a
`tuple[...]`, or one of these or None."""

_LARGEST = 20_000
"""Bytes. The parser's time grows with the square of a dotted key's length: 40 kB took 6 seconds."""
_SHOWN = 100  # characters of a name or value in a message

_HEADER = re.compile(r"\s*\[\s*([\w-]+)\s*\]")
_KEY = re.compile(r"\s*([\w-]+(?:\s*\.\s*[\w-]+)*)\s*=")
_NAMES = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


class ConfigFile:
    """The tables of a file, those of `--set` over them; every value is of its type.

    Args:
        changes: `TABLE.KEY=VALUE`, the value as TOML has it; a text needs no quotes.

    Raises:
        LampError: the file or a change cannot be read, or says something unknown.
    """

    def __init__(self, path: Path, changes: Sequence[str], schema: Schema) -> None:
        self.path, self._schema = path, schema
        text = _read(path)
        self._lines = _find_lines(text)
        self._changed: dict[tuple[str, str], None] = {}
        self.tables: Tables = {name: {} for name in schema}
        for table, values in _parse(path, text).items():
            self._check_table(table, values)
            for key, value in values.items():
                self._put(table, key, value)
        self._own = {name: dict(values) for name, values in self.tables.items()}
        for change in changes:
            self._change(change)

    def where(self, table: str, key: str = "") -> str:
        """`train.toml, line 3: [data] folder`, to begin a sentence with."""
        name = f"[{table}] {key}".strip()[:_SHOWN]
        if (table, key) in self._changed:
            return f"--set {table}.{key}"
        line = self._lines.get((table, key))
        return f"{self.path.name}, line {line}: {name}" if line else f"{self.path.name}: {name}"

    def made(self, table: str, make: Callable[[Tables], T]) -> T:
        """What `make` makes of the tables; a refusal is blamed on those values of `--set`
        without which it would not come, and else on the table.

        Raises:
            LampError: the one of `make`, behind the place of the mistake.
        """
        try:
            return make(self.tables)
        except LampError as error:
            raise LampError(f"{self._blamed(table, make, str(error))}: {error}") from error

    def _blamed(self, table: str, make: Callable[[Tables], Any], refusal: str) -> str:
        changed = list(self._changed)
        for blamed in [[one] for one in changed] + [changed]:
            tables = {name: dict(values) for name, values in self.tables.items()}
            for name, key in blamed:
                tables[name].pop(key)
                if key in self._own[name]:
                    tables[name][key] = self._own[name][key]
            try:
                make(tables)
            except LampError as error:
                if str(error) == refusal:
                    continue
            if blamed:
                return " and ".join(self.where(*one) for one in blamed)
        return self.where(table)

    def required(self, table: str, key: str, hint: str) -> Any:
        """A value that must be there; `hint` says what to give."""
        if key not in self.tables[table]:
            raise LampError(f"{self.where(table, key)} is missing: {hint}.")
        return self.tables[table][key]

    def has(self, table: str, key: str) -> bool:
        """Whether a value is given that is not empty."""
        return bool(self.tables[table].get(key))

    def file(self, table: str, key: str, default: str = "") -> Path:
        """A path, relative to the folder of the file itself.

        Raises:
            LampError: it is no path, such as one in the home folder of nobody.
        """
        given = self.tables[table].get(key, default)
        try:
            path = self.path.absolute().parent / Path(given).expanduser()
            path.exists()  # refuses names that are too long or hold a NUL
        except (OSError, ValueError, RuntimeError) as error:
            raise LampError(
                f"{self.where(table, key)} is {_show(given)}, which is no path "
                f"({str(error)[:_SHOWN]})."
            ) from error
        return path

    def _check_table(self, table: str, values: Any) -> None:
        if table in self._schema and isinstance(values, dict):
            return
        line = self._lines.get((table, "")) or self._lines.get(("", table))
        at = f"{self.path.name}, line {line}" if line else self.path.name
        if table in self._schema or isinstance(values, dict):
            known = [f"[{name}]" for name in self._schema]
            raise LampError(f"{at}: {_unknown(f'[{table}]', known, 'table')}")
        homes = [f"[{name}]" for name, keys in self._schema.items() if table in keys]
        hint = f"it belongs below {' or '.join(homes)}" if homes else "put it below its [table]"
        raise LampError(f"{at}: '{table[:_SHOWN]}' stands in no table: {hint}.")

    def _put(self, table: str, key: str, value: Any) -> None:
        if key not in self._schema[table]:
            raise LampError(f"{self.where(table, key)} is unknown: {self._guess(table, key)}")
        wanted = self._schema[table][key]
        fitting = _fit(value, wanted)
        if fitting is None:
            raise LampError(
                f"{self.where(table, key)} must be {_describe(wanted)}, not {_show(value)}."
            )
        self.tables[table][key] = fitting

    def _guess(self, table: str, key: str) -> str:
        known = list(self._schema[table])
        close = difflib.get_close_matches(key, known, 1)
        if close:
            return f"did you mean '{close[0]}'?"
        for other, keys in self._schema.items():
            if key in keys:
                return f"it belongs to [{other}]."
        return f"[{table}] has {', '.join(known)}."

    def _change(self, change: str) -> None:
        name, equals, text = change.partition("=")
        table, dot, key = (part.strip() for part in name.partition("."))
        if not equals or not dot:
            tables = [table for table, keys in self._schema.items() if name.strip() in keys]
            example = f"{tables[0]}.{change}" if equals and tables else "recipe.steps=500"
            raise LampError(f"--set {change} names no value: write TABLE.KEY=VALUE, as {example}.")
        if table not in self._schema:
            raise LampError(f"--set {change}: {_unknown(table, list(self._schema), 'table')}")
        self._changed[table, key] = None
        self._put(table, key, _value(text.strip()))


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise LampError(
                f"{path} has {size:,} bytes, the settings of a run take {_LARGEST:,} at most: give "
                "the TOML file of the run."
            )
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise LampError(f"There is no file {path}: give the TOML file of the run.") from None
    except UnicodeDecodeError:
        raise LampError(f"{path} is no UTF-8 text: save it again with that encoding.") from None
    except OSError as error:
        raise LampError(f"{path} cannot be read ({error}).") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # the parser lets some of its own out
        raise LampError(
            f"{path.name} is no valid TOML ({str(error)[:_SHOWN]}): texts need quotes, one "
            "KEY = VALUE a line."
        ) from error


def _value(text: str) -> Any:
    """A value as TOML has it; what is none, such as a name without quotes, is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _find_lines(text: str) -> dict[tuple[str, str], int]:
    """Where each table ("" as the key) and key stands, for messages only."""
    found: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = header[1]
            found.setdefault((table, ""), number)
        elif key := _KEY.match(line):
            *above, name = (part.strip() for part in key[1].split("."))
            found.setdefault((".".join(filter(None, [table, *above])), name), number)
    return found


def _fit(value: Any, wanted: Any) -> Any:
    """The value as the type asks for it, or None."""
    if choices := _choices(wanted):
        return value if isinstance(value, str) and value in choices else None
    if get_origin(wanted) in (Union, UnionType):
        kinds = (kind for kind in get_args(wanted) if kind is not NoneType)
        return next((fit for kind in kinds if (fit := _fit(value, kind)) is not None), None)
    if get_origin(wanted) is tuple:
        each = get_args(wanted)
        if not isinstance(value, list) or len(value) != len(each):
            return None
        parts = tuple(_fit(part, kind) for part, kind in zip(value, each, strict=True))
        return None if None in parts else parts
    if wanted is float and type(value) in (int, float):
        return float(value) if abs(value) <= sys.float_info.max else None
    if type(value) is int and abs(value) >= 2**64:  # no setting, no seed has more bits
        return None
    return value if type(value) is wanted else None


def _choices(wanted: Any) -> tuple[str, ...]:
    if isinstance(wanted, tuple):
        return wanted
    return get_args(wanted) if get_origin(wanted) is Literal else ()


def _describe(wanted: Any) -> str:
    if choices := _choices(wanted):
        *others, last = (f"'{choice}'" for choice in choices)
        return f"{', '.join(others)} or {last}"
    if get_origin(wanted) in (Union, UnionType):
        return " or ".join(_describe(k) for k in get_args(wanted) if k is not NoneType)
    if get_origin(wanted) is tuple:
        return f"[{', '.join(_describe(kind) for kind in get_args(wanted))}]"
    return _NAMES[wanted]


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return f"'{value[:_SHOWN]}'" if isinstance(value, str) else str(value)[:_SHOWN]
    except ValueError:  # thousands of digits, written in hexadecimal
        return "a number of so many digits"


def _unknown(name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
    return f"there is no {what} {name[:_SHOWN]}: {hint}"
