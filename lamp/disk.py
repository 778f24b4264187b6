"""Files that are put in place under a name that nobody else has, and disks that refuse them."""

from __future__ import annotations

import errno
import itertools
import os
import re
from pathlib import Path

# As the system's own numbers, which safetensors tells in its text only.
_NO_RIGHT = {5, 19} if os.name == "nt" else {errno.EACCES, errno.EPERM, errno.EROFS}


def put_new(beside: Path, path: Path) -> Path:
    """Rename `beside` to `path` or, if that is taken by now, to NAME-2 and so on: never over
    another file, whatever processes there are. `beside` may stay, as a second name."""
    for number in itertools.count(1):
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            _rename_new(beside, free)
            return free
        except FileExistsError:
            continue
    raise AssertionError("numbers do not end")


def _rename_new(beside: Path, path: Path) -> None:
    if os.name == "nt":
        os.rename(beside, path)  # which refuses there what POSIX does
        return
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # the disk has no second names
        if path.exists():
            raise FileExistsError from None
        os.replace(beside, path)


def cure(error: Exception, folder: Path) -> str:
    """The beginning of a sentence without its end, such as `Free some disk space`."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = int(told[1]) if told else getattr(error, "winerror", getattr(error, "errno", None))
    if number in _NO_RIGHT:
        return f"Get the right to write into the folder {folder}"
    return "Free some disk space"
