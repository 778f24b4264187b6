"""Watching one piece of code at work on bad input: errors, time, memory, traces on the disk."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamp.errors import LampError

LONGEST = 5.0  # seconds of computing
MEMORY = 3  # times the file's size, besides what a small file may cost
SPARE = 16 * 2**20

_TRACES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link",
    "os.symlink", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
    "socket.connect", "pickle.find_class", "shutil.rmtree",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_seen: list[str] | None = None


@dataclass
class Outcome:
    """What became of one bad file."""

    loaded: bool = False
    refusal: str = ""
    problems: list[str] = field(default_factory=list)


def watch(
    file: Path, load: Callable[[Path], object], seconds: float = LONGEST, room: int = SPARE
) -> Outcome:
    """Load a file: it is loaded, or refused by a LampError; all else is a problem, more than so
    many `seconds` or, besides three times the file's size, `room` in bytes too."""
    outcome = Outcome()
    before = set(os.listdir(file.parent)) | set(os.listdir())
    begun, base = time.process_time(), _begin_peak()
    with _traces() as traces:
        try:
            load(file)
            outcome.loaded = True
        except LampError as error:
            outcome.refusal = str(error)
        except Exception as error:
            outcome.problems.append(f"{type(error).__name__}: {str(error)[:200]}")
    memory, took = _end_peak() - base, time.process_time() - begun
    outcome.problems += [f"trace: {trace}" for trace in traces]
    if new := (set(os.listdir(file.parent)) | set(os.listdir())) - before:
        outcome.problems.append(f"wrote {sorted(new)}")
    if took > seconds:
        outcome.problems.append(f"took {took:.1f} s")
    size = file.stat().st_size
    if memory > MEMORY * size + room:
        outcome.problems.append(f"took {memory / 2**20:.0f} MiB for {size / 2**20:.2f} MiB")
    if outcome.refusal and not _is_sentence(outcome.refusal):
        outcome.problems.append(f"no sentence: {outcome.refusal[:200]!r}")
    return outcome


def _is_sentence(text: str) -> bool:
    """Something that a person can be shown: text, not too long, with an end."""
    with contextlib.suppress(UnicodeEncodeError):
        return bool(text.encode()) and len(text) < 2000 and text.endswith((".", "?"))
    return False


def _begin_peak() -> int:
    """Bytes in use now, from which on the highest value is kept."""
    if _RESET.exists():
        _RESET.write_text("5")
        return _status("VmRSS")
    tracemalloc.start()
    return 0


def _end_peak() -> int:
    if _RESET.exists():
        return _status("VmHWM")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def _traces() -> Iterator[list[str]]:
    """Whatever is written, removed, run or unpickled meanwhile."""
    global _seen
    _listen()
    _seen = found = []
    try:
        yield found
    finally:
        _seen = None


_listening = False


def _listen() -> None:
    # A listener can never be taken off again: there is one, and most of the time it sleeps.
    global _listening
    if not _listening:
        sys.addaudithook(_hear)
        _listening = True


def _hear(event: str, details: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(details[2], int) and bool(details[2] & _WRITING)
    if writes or event in _TRACES:
        _seen.append(f"{event} {str(details)[:200]}")
