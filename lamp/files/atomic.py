"""Files that are put in place under a name that nobody else has, and disks that refuse them."""

from __future__ import annotations

import errno
import itertools
import os
import re
from pathlib import Path

from ..plain import log

# As the system's own numbers, which safetensors tells in its text only.
_NO_RIGHT = {5, 19} if os.name == "nt" else {errno.EACCES, errno.EPERM, errno.EROFS}


def keep(beside: Path, path: Path, *, replace: bool = True) -> Path:
    """See what was written `beside` on the disk, then put it in place.

    Where `path` is taken and may not be replaced, or cannot be because it is open elsewhere (on
    Windows), it goes to NAME-2 and so on, and a warning says so.
    """
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    if replace:
        try:
            os.replace(beside, path)
            return path
        except PermissionError:
            if not path.exists():
                raise
    put = put_new(beside, path)
    if put != path:
        log.warning("%s is taken or open elsewhere: written as %s", path.name, put.name)
    return put


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
