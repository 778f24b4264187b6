"""What a command leaves: a motion, and words."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import LampError
from ..plain import plain_lines


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


def tell(text: str) -> None:
    """Print a command's result for people: what files say of themselves is shown, not obeyed."""
    sys.stdout.write(f"{plain_lines(text)}\n")
