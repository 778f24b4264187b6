"""The times at which the frames of a video file are shown, where the file's own are not enough."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

    from .pixels import Decoded

REORDERED = 16
"""By how many places a frame may be shown later than it is stored, in all codecs."""
_PEEK = 64  # packets by which it is seen whether their times are real
_HELD_PIXELS = 2**27  # decoded ahead at the most
_LEAP = 10.0  # seconds beyond which a clock that may leap has leapt, as FFmpeg takes it
LEAPING = ("mpegts", "mpeg", "ogg")
"""Containers whose clock may start anew anywhere: recordings joined byte by byte."""


def peek(packets: Iterator[av.Packet]) -> tuple[list[av.Packet], bool]:
    """The first packets, and whether they tell when they are shown, not just in which order they
    are stored: AVI, and Matroska that was made from it, do not."""
    first: list[av.Packet] = []
    for packet in packets:
        first.append(packet)
        if len(first) == _PEEK:
            break
    both = [(p.pts, p.dts) for p in first if p.pts is not None and p.dts is not None]
    return first, len({pts - dts for pts, dts in both}) > 1


def in_order(frames: Iterable[Decoded]) -> Iterator[Decoded]:
    """Frames in the order in which they are shown, with times that belong to others of them: the
    times are right as a whole, and are dealt out anew from the smallest on. One that was there
    before begins a clock of its own."""
    waiting: deque[Decoded] = deque()
    times: list[float] = []
    dealt: float | None = None

    def next_one() -> Decoded:
        nonlocal dealt
        dealt = heapq.heappop(times)
        return replace(waiting.popleft(), time=dealt, held=None)

    for each in frames:
        if each.time is None:
            yield each
            continue
        if each.time in times or (dealt is not None and each.time <= dealt):
            while waiting:
                yield next_one()
            dealt = None
        room = min(REORDERED, max(_HELD_PIXELS // (each.frame.width * each.frame.height), 4))
        waiting.append(each)
        heapq.heappush(times, each.time)
        if len(waiting) > room:
            yield next_one()
    while waiting:
        yield next_one()


class Clock:
    """Makes one clock of times that start over or leap, as those of joined recordings do.

    ``step`` is the usual time from frame to frame, for as long as nothing better is known.
    ``leaps``: whether long gaps are such leaps and not pictures that are held.
    """

    def __init__(self, step: float, leaps: bool) -> None:
        self._step, self._leaps = step, leaps
        self._shift = 0.0
        self._first: float | None = None
        self._last = self._begun = 0.0
        self.joined = 0.0
        """Seconds after the start at which a second clock began; 0 if there is none."""

    def shown(self, time: float) -> float:
        """When a frame is shown, by the time that is written on it; never before the last one."""
        if self._first is None:
            self._first = self._last = self._begun = time
            return time
        now = time + self._shift
        back = self._last - now
        anew = time <= self._first + self._step / 2 or back > REORDERED * self._step
        if (back > 0 and anew) or (self._leaps and abs(back) > _LEAP):
            now = self._last + self._step
            self._shift, self._first = now - time, time
            self.joined = self.joined or now - self._begun
        elif back > 0:
            now = self._last
        elif back < 0:
            self._step = min(-back, _LEAP)
        self._last = now
        return now
