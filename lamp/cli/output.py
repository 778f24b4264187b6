"""Output of the commands."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import LampError
from ..plain import plain_lines


def new_file(path: Path) -> Path:
    """Check that `path` is free.

    Raises:
        LampError: it exists, or does not end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise LampError(f"{path.name} does not end in .safetensors: choose a name that does.")
    return free(path)


def free(path: Path) -> Path:
    """Check that nothing is at `path`.

    Raises:
        LampError: something is.
    """
    if path.exists():
        raise LampError(
            f"{path} already exists and is not overwritten: choose another name or folder."
        )
    return path


def tell(text: str) -> None:
    """Print a result. Control characters from files are escaped."""
    sys.stdout.write(f"{plain_lines(text)}\n")
