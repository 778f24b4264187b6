"""Ctrl-C and kill: asked once, a run ends after the step that it is in; asked twice, at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # not every system has all of them
_NOTE = b"\nstopping after this step, to keep it whole (once more: at once)\n"


class StopRequest:
    """Whether somebody wants the run to end.

    Args:
        launched: a launcher passes the signals on, perhaps several of them, and ends the process
            itself if it takes too long.
    """

    def __init__(self, launched: bool = False) -> None:
        self.asked = False
        self._launched = launched

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for a wish while the block lasts."""
        known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        # What is ignored stays so: nohup lets a run outlive its terminal.
        heard = [number for number in known if signal.getsignal(number) != signal.SIG_IGN]
        kept = {number: signal.signal(number, self._note) for number in heard}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self._launched:
            raise KeyboardInterrupt
        self.asked = True
        if not self._launched:
            # Past Python's buffers, in whose middle the signal may have come.
            with contextlib.suppress(OSError):
                os.write(2, _NOTE)
