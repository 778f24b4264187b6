"""How long the samples and states of a run take, and will take until its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something is done after `step`: every so many steps and after the last one; 0 is
    never."""
    return bool(every) and (step % every == 0 or step == last)


class Overhead:
    """Times what is done between steps, by kind.

    Args:
        every: kind -> after how many steps it is done, see `is_due`.
        last: the run's last step.
    """

    def __init__(self, every: dict[str, int], last: int) -> None:
        self._every, self._last = every, last
        self._took: dict[str, float] = {}

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Time the block; the newest time of a kind is what the next ones are thought to take."""
        begun = time.perf_counter()
        yield
        self._took[kind] = time.perf_counter() - begun

    def left(self, step: int) -> float:
        """Seconds for all that is still to come after `step`; a kind that was never done counts
        nothing yet."""
        return sum(
            seconds * self._times(self._every[kind], step) for kind, seconds in self._took.items()
        )

    def _times(self, every: int, step: int) -> int:
        if not every or step >= self._last:
            return 0
        return self._last // every - step // every + bool(self._last % every)
