"""Settings that carry their help text, range and choices.

The nodes' inputs and tooltips, the command line's checks and the tables in the documentation are
made from them.
"""

from __future__ import annotations

from dataclasses import Field, field, fields
from typing import Any

from .errors import LampError


def setting(
    default: Any,
    help: str = "",
    low: float | None = None,
    high: float | None = None,
    *,
    step: float | None = None,
    choices: tuple[str, ...] = (),
    advanced: bool = False,
) -> Any:
    """A dataclass field that a person sets.

    Args:
        help: the tooltip, and the text in the documentation.
        low, high: range of a number.
        step: of the number's widget.
        choices: the values of a menu, the default first.
        advanced: hidden at first, where the host can.
    """
    given = {"help": help, "low": low, "high": high, "step": step, "choices": choices}
    return field(default=default, metadata={**given, "advanced": advanced})


def find_setting(config: type, name: str) -> Field[Any]:
    """The field of a settings class."""
    return next(each for each in fields(config) if each.name == name)


def check_settings(config: Any) -> None:
    """Check every field against its range or choices.

    Raises:
        LampError: a value lies outside.
    """
    for each in fields(config):
        value, known = getattr(config, each.name), each.metadata
        low, high = known.get("low"), known.get("high")
        if low is not None and not low <= value <= high:
            raise LampError(f"{each.name} is {value}: choose a value from {low} to {high}.")
        if known.get("choices") and value not in known["choices"]:
            choices = " or ".join(known["choices"])
            raise LampError(f"{each.name} is '{value}': choose {choices}.")
