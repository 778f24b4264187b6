"""Atomic writes: write beside the target, fsync, rename. No half-written file is ever visible, only
an empty one for a moment where a disk has no hard links and nothing may be replaced."""

from __future__ import annotations

import errno
import itertools
import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..plain import log

# As raw OS numbers, because safetensors reports them only in its error text.
_NO_PERMISSION = {5, 19} if os.name == "nt" else {errno.EACCES, errno.EPERM, errno.EROFS}


def write_file(
    path: Path, write: Callable[[Path], object], *, replace: bool = True, rename: bool = True
) -> Path:
    """Write a file atomically, and create its folder if needed.

    Args:
        write: writes the content to the temporary path that it is given.
        replace: False never overwrites: where `path` exists, the file becomes NAME-2 and so on.
        rename: whether a file that cannot be replaced because another program has it open
            (Windows) leads to NAME-2 too, with a warning, and not to an error.

    Returns:
        Where the file is.

    Raises:
        OSError: the disk refuses it. Whatever `write` raises passes through. `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if replace:
            try:
                os.replace(temporary, path)
                return path
            except PermissionError:
                if not (rename and path.exists()):
                    raise
        put = _put_new(temporary, path)
        if put != path:
            log.warning("%s exists or is open in another program: wrote %s", path.name, put.name)
        return put
    finally:
        with suppress(OSError):
            temporary.unlink()


def _put_new(temporary: Path, path: Path) -> Path:
    """Move to `path` or, if that exists, to NAME-2 and so on, without a race between processes."""
    for number in itertools.count(1):
        free = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        with suppress(FileExistsError):
            _move_new(temporary, free)
            return free
    raise AssertionError("unreachable")


def _move_new(temporary: Path, path: Path) -> None:
    if os.name == "nt":
        os.rename(temporary, path)  # fails on Windows where the target exists
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # the disk has no hard links: an empty file reserves the name
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(temporary, path)
        except BaseException:
            os.unlink(path)
            raise


def write_advice(error: Exception, folder: Path) -> str:
    """What to do after a failed write, without a full stop: `Free some disk space`."""
    in_text = re.search(r"\(os error (\d+)\)", str(error))
    number = int(in_text[1]) if in_text else getattr(error, "winerror", getattr(error, "errno", 0))
    if number in _NO_PERMISSION:
        return f"Get write permission for the folder {folder}"
    return "Free some disk space"
