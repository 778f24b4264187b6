"""Each training run has a folder of its own, also when several processes start at once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from ..errors import LampError


def new_folder(folder: Path) -> Path:
    """Create the folder NAME_00001, or the next higher number that is free.

    Raises:
        LampError: the folder cannot be created.
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
                f"Cannot create the training folder {place} ({error.strerror or error}). Check "
                f"that {place.parent} is writable, or choose another name."
            ) from error
    raise AssertionError("unreachable")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on `folder` while the block runs.

    The operating system releases the lock when the process ends, even if it is killed. On a disk
    without file locks, or without write permission, the block runs unlocked.

    Raises:
        LampError: another training holds the lock.
    """
    from filelock import FileLock, Timeout  # comes with torch

    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise LampError(
            f"Another training is running in {folder.name}. Wait until it ends, or set resume to "
            "none to start a new run in a folder of its own."
        ) from None
    except (OSError, NotImplementedError):
        pass  # whoever writes into the folder reports what is wrong with it
    try:
        yield
    finally:
        lock.release()
