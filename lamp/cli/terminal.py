"""Progress of long jobs: tqdm's bar on a screen, some lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from datetime import timedelta
from typing import Any, TextIO

from ..plain import plain, plain_lines
from ..training.loop import StepReport

# Lines for one job, and the early steps of a long one that get a line.
_LINES, _EARLY = 40, (1, 10, 100)
_BAR = "{desc} |{bar:24}| {n_fmt}/{total_fmt} {postfix}"


class Terminal:
    """Shows texts and progress on `stream`, None: nowhere. A context, which closes the last bar."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._bar, self._new_bar = stream, None, None
        if stream is not None and stream.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._new_bar = tqdm
        self._job = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._close_bar()

    def say(self, text: str) -> None:
        """Write lines that stay. Whatever files put into them is escaped."""
        if self._stream is None:
            return
        if self._bar is not None:
            self._bar.clear()
        self._stream.write(f"{plain_lines(text)}\n")
        self._stream.flush()
        if self._bar is not None:
            self._bar.refresh()

    def progress(self, job: str, done: int, total: int, detail: str = "") -> None:
        """Show how far a job is."""
        if self._stream is None:
            return
        if self._new_bar is None:
            if done in _EARLY or (done and done * _LINES // total > (done - 1) * _LINES // total):
                self.say(f"{job} {done} of {total}{', ' if detail else ''}{detail}")
            return
        if job != self._job:
            self._close_bar()
            self._job = job
            options = {"file": self._stream, "dynamic_ncols": True, "bar_format": _BAR}
            self._bar = self._new_bar(desc=plain(job), total=total, **options)
        bar: Any = self._bar
        bar.n, bar.total = done, total
        bar.set_postfix_str(plain(detail))

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._job = None, ""


def beside_the_result() -> Terminal:
    """For a command that prints its result to stdout: progress on stderr, if it is a screen."""
    return Terminal(sys.stderr if sys.stderr.isatty() else None)


class LogLines(logging.Handler):
    """Shows the warnings of `lamp` on a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        self._terminal.say(f"{record.levelname.lower()}: {record.getMessage()}")


def describe_step(report: StepReport) -> str:
    """`loss 0.1234, 1.52 steps/s, 0:03:05 left`"""
    left = timedelta(seconds=round(report.seconds_left))
    return f"loss {report.loss:.4f}, {report.speed}, {left} left"
