"""Observe one read of a bad file: errors, time, memory, and traces it leaves."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamp.errors import LampError

LONGEST = 5.0  # CPU seconds
MEMORY = 3  # times the size of the file, plus
SPARE = 16 * 2**20  # bytes

_TRACES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link",
    "os.symlink", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
    "socket.connect", "pickle.find_class", "shutil.rmtree",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Result:
    """What a part of the benchmark did, and the problems it found."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def expect(self, good: bool, problem: str) -> None:
        """Note a problem unless `good`."""
        if not good:
            self.problems.append(problem)


@dataclass
class Outcome:
    """How one bad file was handled: `became` is loaded, refused or failed."""

    became: str = "failed"
    refusal: str = ""
    problems: list[str] = field(default_factory=list)
    label: str = ""


def watch(
    file: Path, load: Callable[[Path], object], seconds: float = LONGEST, room: int = SPARE
) -> Outcome:
    """Read a file, which must load or be refused by a LampError.

    All else is a problem: another error, more than `seconds`, more memory than three times the
    file's size plus `room`, and any file written, process started or pickle loaded.
    """
    outcome = Outcome()
    before = set(os.listdir(file.parent)) | set(os.listdir())
    begun, base = time.process_time(), _begin_peak()
    with _traces() as traces:
        try:
            load(file)
            outcome.became = "loaded"
        except LampError as error:
            outcome.became, outcome.refusal = "refused", str(error)
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
    if outcome.became == "refused" and not is_readable(outcome.refusal):
        outcome.problems.append(f"unreadable message: {outcome.refusal[:200]!r}")
    return outcome


@dataclass(frozen=True)
class Hostile:
    """A kind of file: its names, how to make and read it; `refused` if it must not load."""

    kind: str
    names: Sequence[str]
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    refused: bool = True
    seconds: float = LONGEST
    room: int = SPARE

    def outcome(self, folder: Path, name: str) -> Outcome:
        """Make it in an empty folder and read it."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.make(path)
        outcome = watch(path, self.read, self.seconds, self.room)
        if self.refused and outcome.became == "loaded":
            outcome.problems.append("it was loaded")
        outcome.label = f"{self.kind}, {name!r}"
        return outcome


def is_readable(text: str) -> bool:
    """Whether an error message can be shown: text of reasonable length that ends properly."""
    with contextlib.suppress(UnicodeEncodeError):
        return bool(text.encode()) and len(text) < 2000 and text.endswith((".", "?"))
    return False


def _begin_peak() -> int:
    """Bytes in use now; resets the peak."""
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


_seen: list[list[str]] = []
_listening = False


@contextlib.contextmanager
def _traces() -> Iterator[list[str]]:
    """Collect what is written, removed, started or unpickled."""
    global _listening
    if not _listening:  # an audit hook can never be removed
        sys.addaudithook(_hear)
        _listening = True
    _seen.append([])
    try:
        yield _seen[0]
    finally:
        _seen.clear()


def _hear(event: str, details: tuple[Any, ...]) -> None:
    if not _seen:
        return
    writes = event == "open" and isinstance(details[2], int) and bool(details[2] & _WRITING)
    if writes or event in _TRACES:
        _seen[0].append(f"{event} {str(details)[:200]}")
