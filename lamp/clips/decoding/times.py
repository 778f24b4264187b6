"""Display times of video frames, where the timestamps in the file do not suffice."""

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
"""How many places later than stored a frame may be displayed, in any codec."""
_PEEK = 64  # packets that show whether timestamps are display times
_HELD_PIXELS = 2**27  # largest amount decoded ahead
_LEAP = 10.0  # seconds; a longer gap is a jump of the clock, as in FFmpeg
LEAPING = ("mpegts", "mpeg", "ogg")
"""Containers whose clock may restart anywhere, as in recordings joined byte by byte."""


def peek(packets: Iterator[av.Packet]) -> tuple[list[av.Packet], bool]:
    """The first packets, and whether their timestamps are display times, not only storage order as
    in AVI and in Matroska made from it."""
    first: list[av.Packet] = []
    for packet in packets:
        first.append(packet)
        if len(first) == _PEEK:
            break
    both = [(p.pts, p.dts) for p in first if p.pts is not None and p.dts is not None]
    return first, len({pts - dts for pts, dts in both}) > 1


def in_order(frames: Iterable[Decoded]) -> Iterator[Decoded]:
    """Frames in display order, with times that belong to other frames: reassign the times in
    ascending order. A repeated time starts a new clock."""
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
    """Makes one clock of timestamps that restart or jump, as in joined recordings.

    ``step`` is the expected time between frames until one is measured. ``leaps``: whether long gaps
    are jumps of the clock rather than long-lasting frames.
    """

    def __init__(self, step: float, leaps: bool) -> None:
        self._step, self._leaps = step, leaps
        self._shift = 0.0
        self._first: float | None = None
        self._last = self._begun = 0.0
        self.joined = 0.0
        """Seconds after the start at which a second clock began; 0 if none did."""

    def shown(self, time: float) -> float:
        """The display time for a timestamp; never before the previous one."""
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
