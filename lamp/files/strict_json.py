"""JSON from strangers: ambiguous or absurd input is refused."""

from __future__ import annotations

import json
from typing import Any

_MOST_DIGITS = 20  # of an integer: 2^64 has 20


def read_json(text: str | bytes) -> Any:
    """As `json.loads`.

    Raises:
        ValueError: it is not JSON, an object has a key twice (some parsers take the first, some the
            last), an integer has more digits than 64 bits allow, or it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key '{twice[:100]}' twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has an integer of {len(digits):,} digits")
    return int(digits)
