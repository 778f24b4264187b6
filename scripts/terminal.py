"""Progress in a terminal as one line that is overwritten, or as plain lines in a file or pipe."""

from __future__ import annotations

import shutil
from typing import TextIO

_LEAST = 0.1  # a plain line for each tenth of a job


def bar(share: float, width: int = 24) -> str:
    """`[#####-----]`"""
    full = round(min(max(share, 0.0), 1.0) * width)
    return f"[{'#' * full}{'-' * (width - full)}]"


class StatusLine:
    """`show` overwrites its line, `say` keeps it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live = stream, stream.isatty()
        self._next = 0.0

    def show(self, text: str, share: float) -> None:
        """Show progress. `share`: 0 to 1."""
        if self._live:
            room = shutil.get_terminal_size().columns - 3
            self._write(f"\r\033[K  {text[:room]}")
        elif share >= self._next or share < self._next - 2 * _LEAST:
            self._write(f"  {text}\n")
            self._next = share + _LEAST

    def say(self, text: str) -> None:
        self._next = 0.0
        self._write(f"\r\033[K  {text}\n" if self._live else f"  {text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
