"""What to do about a disk that refuses a file."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

# As the system's own numbers, which safetensors tells in its text only.
_NO_RIGHT = {5, 19} if os.name == "nt" else {errno.EACCES, errno.EPERM, errno.EROFS}


def cure(error: Exception, folder: Path) -> str:
    """The beginning of a sentence without its end, such as `Free some disk space`."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = int(told[1]) if told else getattr(error, "winerror", getattr(error, "errno", None))
    if number in _NO_RIGHT:
        return f"Get the right to write into the folder {folder}"
    return "Free some disk space"
