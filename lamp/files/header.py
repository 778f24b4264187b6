"""The header of a safetensors file, looked at before a library takes it apart.

Files come from strangers. Read blindly, a header of 1 MB that lists a tensor's shape as `[1, 1, 1,
...]` keeps a processor busy for minutes, and one of many short texts takes twenty times its size.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from .strict_json import read_json

MAX_HEADER = 8 * 2**20
"""Bytes; most of it is the graph that made a motion. One for SD 1.x has about 100 kB of its own."""
_MAX_TEXTS = 120_000  # five for a tensor; the whole state of a run for SD-XL has 60,000
_MAX_STRUCTURE = 2 * 2**20  # bytes outside of texts
_LONG_LIST = re.compile(rb"\[(?:[^][,]*,){8}")  # no tensor has more than 8 dimensions


class HeaderError(ValueError):
    """A header that no honest file has; what is wrong with it, without an end."""


def check_file(path: Path) -> None:
    """See that a file's header is one that can be read.

    Raises:
        HeaderError: it is too long or too dense, names something twice, or tells of tensors that
            the file does not hold.
        OSError: the file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise HeaderError("it is no file")  # a pipe would be waited for until the end of days
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        held = path.stat().st_size - 8 - length
        check_header(file.read(min(length, MAX_HEADER)), length, held)


def check_header(header: bytes, length: int, held: int) -> None:
    """See that a header, which gives itself a `length`, can be read, and that `held` bytes behind
    it can be the tensors that it tells of. See `check_file`."""
    if length > MAX_HEADER:
        raise HeaderError(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")
    plain = header.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 2 * _MAX_TEXTS:
        raise HeaderError(f"its header has more than {_MAX_TEXTS:,} texts")
    structure = b"".join(plain.split(b'"')[::2])
    if len(structure) > _MAX_STRUCTURE:
        raise HeaderError("its header lists too much")
    if _LONG_LIST.search(structure):
        raise HeaderError("a tensor in its header has more than 8 dimensions")
    try:
        entries = read_json(header)
    except ValueError as error:
        raise HeaderError(f"its header is damaged: {str(error)[:200]}") from error
    if type(entries) is not dict:
        raise HeaderError("its header is no list of tensors")
    for name, entry in entries.items():
        if name != "__metadata__":
            _check_entry(name, entry, held)


def _check_entry(name: str, entry: Any, held: int) -> None:
    """A shape costs no bytes if a side of it is 0, whatever the others are: models would be built
    by them."""
    shape = entry.get("shape") if type(entry) is dict else None
    if type(shape) is not list or any(type(side) is not int or side < 0 for side in shape):
        raise HeaderError(f"the tensor '{name[:100]}' in its header has no shape")
    if 0 in shape and len(shape) > 1:
        raise HeaderError(f"the tensor '{name[:100]}' in its header has a side of 0")
    # No number takes less than half a byte.
    if math.prod(shape) > 2 * max(held, 0):
        raise HeaderError(f"the tensor '{name[:100]}' has more numbers than the file bytes")
