"""A run's folder is one training's alone, whatever processes there are."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import LampError


def new_folder(folder: Path) -> Path:
    """Make the folder NAME_00001, or that with the next number which nobody has taken meanwhile.

    Raises:
        LampError: the disk refuses it.
    """
    stem, number = folder.name.rsplit("_", 1)
    for each in itertools.count(int(number)):
        place = folder.with_name(f"{stem}_{each:05}")
        try:
            place.mkdir(parents=True)
            return place
        except FileExistsError:
            continue
        except OSError as error:
            raise LampError(
                f"The folder {place} of this training cannot be made ({error.strerror or error}): "
                f"see that {place.parent} can be written to, or choose another name."
            ) from error
    raise AssertionError("numbers do not end")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other trainings out of `folder` while the block lasts.

    The lock is the system's own: it goes with the process, however that ends. A disk that knows no
    locks is no reason to stop.

    Raises:
        LampError: another one is at work there.
    """
    try:
        file = _opened(folder)
    except OSError:  # what cannot be written is told where it is written
        yield
        return
    with file:
        if not _locked(file):
            raise LampError(
                f"Another training is at work in {folder.name}: wait for its end, or set resume to "
                "none to begin a new one beside it."
            )
        yield


def _opened(folder: Path) -> IO[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / ".lock").open("ab")


def _locked(file: IO[bytes]) -> bool:
    """Whether the lock is ours, or there are none on this disk."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the second one is Windows'
        return False
    except OSError:
        return True
    return True
