"""The time of a run's samples, validations and states: measured, and expected until its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something is due after `step`: every `every` steps and after the last; 0: never."""
    return bool(every) and (step % every == 0 or step == last)


class Overhead:
    """Times the work between steps, by kind.

    Args:
        every: kind -> interval in steps, see `is_due`.
        last: the run's last step.
    """

    def __init__(self, every: dict[str, int], last: int) -> None:
        self._every, self.last = every, last
        self._took: dict[str, float] = {}

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Time the block. The last time of a kind is the estimate for the next."""
        begun = time.perf_counter()
        yield
        self._took[kind] = time.perf_counter() - begun

    def left(self, step: int) -> float:
        """Expected seconds after `step`. A kind that has not run yet counts as 0."""
        return self.between(step, self.last)

    def between(self, step: int, last: int) -> float:
        """The same for a run whose last step is `last`."""
        return sum(
            seconds * _times(self._every[kind], step, last) for kind, seconds in self._took.items()
        )


def _times(every: int, step: int, last: int) -> int:
    if not every or step >= last:
        return 0
    return last // every - step // every + bool(last % every)
