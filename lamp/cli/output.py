"""Where a command writes its motion."""

from __future__ import annotations

from pathlib import Path

from ..errors import LampError


def new_file(path: Path) -> Path:
    """`path`, once it is certain that nothing is lost by writing there.

    Raises:
        LampError: it exists, or is no .safetensors file.
    """
    if path.suffix != ".safetensors":
        raise LampError(f"{path.name} is no name for a motion: let it end in .safetensors.")
    if path.exists():
        raise LampError(f"{path} is there already: choose another name, nothing is overwritten.")
    return path
