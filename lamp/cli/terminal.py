"""What a person sees of a long job: rich's moving bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from typing import Any, Protocol, TextIO

from ..plain import plain, plain_lines
from ..training.loop import StepReport

# Plain lines of progress for one job, and where a long one tells that it has begun.
_LINES, _EARLY = 40, (1, 10, 100)


class Terminal(Protocol):
    """Where a job tells how it goes; used as a context, since bars have to be taken down."""

    def __enter__(self) -> Terminal: ...

    def __exit__(self, *error: object) -> None: ...

    def say(self, text: str) -> None:
        """Text that stays, plain: what it tells of files is shown, not obeyed."""
        ...

    def progress(self, job: str, done: int, total: int, detail: str = "") -> None:
        """How far a job is, `detail` being what there is to say about it."""
        ...


def open_terminal(stream: TextIO | None = None) -> Terminal:
    """The best that `stream` (by default stdout) can show."""
    stream = stream or sys.stdout
    if stream.isatty():
        try:
            return RichTerminal(stream)
        except ImportError:
            pass
    return PlainTerminal(stream)


def beside_the_result() -> Terminal:
    """For a command whose result goes to stdout: stderr, if somebody looks at it."""
    return open_terminal(sys.stderr) if sys.stderr.isatty() else Silence()


class PlainTerminal:
    """Lines, not too many of them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __enter__(self) -> PlainTerminal:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is to be taken down."""

    def say(self, text: str) -> None:
        """See `Terminal.say`."""
        self._stream.write(f"{plain_lines(text)}\n")
        self._stream.flush()

    def progress(self, job: str, done: int, total: int, detail: str = "") -> None:
        """See `Terminal.progress`."""
        if done in _EARLY or (done and done * _LINES // total > (done - 1) * _LINES // total):
            self.say(f"{job} {done} of {total}{', ' if detail else ''}{detail}")


class RichTerminal:
    """One bar for each job, below what is said.

    Raises ImportError if rich is not installed.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(file=stream, highlight=False, soft_wrap=True),
        )
        self._jobs: dict[str, Any] = {}

    def __enter__(self) -> RichTerminal:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """See `Terminal.say`."""
        self._progress.console.print(plain_lines(text), markup=False)

    def progress(self, job: str, done: int, total: int, detail: str = "") -> None:
        """See `Terminal.progress`."""
        if job not in self._jobs:
            self._jobs[job] = self._progress.add_task(plain(job), detail="")
        self._progress.update(self._jobs[job], completed=done, total=total, detail=plain(detail))


class Silence:
    """For the processes beside the main one."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is to be taken down."""

    def say(self, text: str) -> None:
        """Not here."""

    def progress(self, job: str, done: int, total: int, detail: str = "") -> None:
        """Not here."""


class LogLines(logging.Handler):
    """Brings the warnings of `lamp` to a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self._terminal.say(f"{record.levelname.lower()}: {record.getMessage()}")


def describe_step(report: StepReport) -> str:
    """`loss 0.1234, 1.52 steps/s, 0:03:05 left`"""
    rate = 1 / max(report.seconds_per_step, 1e-9)
    speed = f"{rate:.2f} steps/s" if rate >= 0.1 else f"{report.seconds_per_step:.1f} s a step"
    left = timedelta(seconds=round(report.seconds_left))
    return f"loss {report.loss:.4f}, {speed}, {left} left"
