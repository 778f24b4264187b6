"""Ctrl-C and kill: the first ends a run after the current step, the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # not every system has all of them
_NOTE = b"\nstopping after this step (again: stop at once)\n"


class StopRequest:
    """Whether the run was asked to stop.

    Args:
        launched: by a launcher, which may forward several signals and kills a slow process itself.
    """

    def __init__(self, launched: bool = False) -> None:
        self.asked = False
        self._launched = launched

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record the signals inside the `with` block."""
        known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        # Ignored signals stay ignored: nohup lets a run outlive its terminal.
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
            # Not through Python's buffers, which the signal may have interrupted.
            with contextlib.suppress(OSError):
                os.write(2, _NOTE)
