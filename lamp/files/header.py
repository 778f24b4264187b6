"""Checks on a safetensors header before the library parses it.

Files come from strangers. The library accepts headers of 100 MB: a shape of a million ones then
takes it minutes, and many short strings take twenty times their size in memory.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from .strict_json import read_json

MAX_HEADER = 8 * 2**20
"""Bytes, mostly for the graph that made a motion. The tensors of an SD 1.x one take 100 kB."""
_MAX_TEXTS = 120_000  # five per tensor; a training state for SD-XL has 60,000
_MAX_STRUCTURE = 2 * 2**20  # bytes outside of strings
_LONG_LIST = re.compile(rb"\[(?:[^][,]*,){8}")  # no tensor has more than 8 dimensions


class HeaderError(ValueError):
    """What is wrong with a header, without a full stop."""


def check_file(path: Path) -> None:
    """Check that a file's header is safe to parse.

    Raises:
        HeaderError: it is too long or too dense, has a key twice, or claims tensors that the file
            does not hold.
        OSError: the file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise HeaderError("it is not a regular file")  # reading a pipe would never end
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        held = path.stat().st_size - 8 - length
        check_header(file.read(min(length, MAX_HEADER)), length, held)


def check_header(header: bytes, length: int, held: int) -> dict[str, Any]:
    """As `check_file`, for a header with the claimed `length`, followed by `held` bytes of data.
    Returns its entries."""
    if not length:
        raise HeaderError("its header is empty: the file was not written or downloaded to its end")
    if length > MAX_HEADER:
        raise HeaderError(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")
    plain = header.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 2 * _MAX_TEXTS:
        raise HeaderError(f"its header has more than {_MAX_TEXTS:,} strings")
    structure = b"".join(plain.split(b'"')[::2])
    if len(structure) > _MAX_STRUCTURE:
        raise HeaderError(f"its header has more than {_MAX_STRUCTURE:,} bytes outside of strings")
    if _LONG_LIST.search(structure):
        raise HeaderError("a tensor in its header has more than 8 dimensions")
    try:
        entries = read_json(header)
    except ValueError as error:
        raise HeaderError(f"its header is damaged: {str(error)[:200]}") from error
    if type(entries) is not dict:
        raise HeaderError("its header is not a JSON object")
    for name, entry in entries.items():
        if name != "__metadata__":
            _check_entry(name, entry, held)
    return entries


def _check_entry(name: str, entry: Any, held: int) -> None:
    """Also refuses shapes such as `[2^40, 0]`, which need no bytes but would size a model."""
    shape = entry.get("shape") if type(entry) is dict else None
    if type(shape) is not list or any(type(side) is not int or side < 0 for side in shape):
        raise HeaderError(f"the tensor '{name[:100]}' in its header has no shape")
    if 0 in shape and len(shape) > 1:
        raise HeaderError(f"the tensor '{name[:100]}' in its header has a dimension of 0")
    # The smallest dtypes take half a byte.
    if math.prod(shape) > 2 * max(held, 0):
        raise HeaderError(f"the tensor '{name[:100]}' is larger than the file")
