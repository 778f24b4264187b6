"""Checks whose result is on the device, made without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import LampError

Explain = Callable[[], LampError | None]


class DeferredChecks:
    """Checks of a sampling run.

    A CPU waits for each value that it reads from a GPU, which is then idle. So on CUDA and ROCm a
    check is read when the next call of the model is under way; on other devices at once.
    """

    def __init__(self) -> None:
        self._new: list[tuple[Callable[[], bool], Explain]] = []
        self._old: list[tuple[Callable[[], bool], Explain]] = []

    def add(self, passed: Tensor, explain: Explain) -> None:
        """Check a boolean scalar.

        Args:
            explain: called if it is False; returns the error to raise, or None if there is none
                after a closer look.
        """
        self._new.append((_arriving(passed), explain))
        if not passed.is_cuda:
            self.finish()

    def turn(self) -> None:
        """Raise errors of calls before the one that was just started."""
        old, self._old, self._new = self._old, self._new, []
        _judge(old)

    def finish(self) -> None:
        """Raise errors of all calls."""
        every, self._old, self._new = [*self._old, *self._new], [], []
        _judge(every)


def _judge(checks: list[tuple[Callable[[], bool], Explain]]) -> None:
    for passed, explain in checks:
        if not passed() and (error := explain()) is not None:
            raise error


def _arriving(value: Tensor) -> Callable[[], bool]:
    if not value.is_cuda:
        return lambda: bool(value)
    copy = torch.empty((), dtype=torch.bool, pin_memory=True)
    copy.copy_(value, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(value.device))

    def read() -> bool:
        event.synchronize()
        return bool(copy)

    return read
