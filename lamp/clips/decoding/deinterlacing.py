"""Deinterlacing: the two fields of an interlaced frame were filmed at different times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

from .pixels import Decoded
from .reader import ClipFacts

_FILTERS = ("bwdif", "yadif")  # the better one first; not every build of FFmpeg has them


def deinterlaced(frames: Iterable[Decoded], facts: ClipFacts) -> Iterator[Decoded]:
    """All frames, deinterlaced where they are marked as interlaced."""
    filters: _Filters | None = None
    name = ""
    for each in frames:
        if not filters and each.frame.interlaced_frame and not name:
            name = _available()
            facts.note(
                "is interlaced and was deinterlaced."
                if name
                else "is interlaced, and this FFmpeg has no filter for that: moving edges show "
                "comb artefacts. Deinterlace the clip first (ffmpeg -vf bwdif)."
            )
        if filters and not filters.takes(each.frame):
            yield from filters.end()
            filters = None
        if name and not filters:
            filters = _Filters(name, each.frame)
        if filters:
            yield from filters.through(each)
        else:
            yield each
    if filters:
        yield from filters.end()


def _available() -> str:
    import av.filter

    return next((name for name in _FILTERS if name in av.filter.filters_available), "")


class _Filters:
    """FFmpeg's filter for frames of one size and layout: one frame out per frame in, one later."""

    def __init__(self, name: str, frame: Any) -> None:
        from av.filter import Graph

        self._shape = _shape(frame)
        self._waiting: deque[Decoded] = deque()
        self._count = 0
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format.name,
            time_base=Fraction(1, 25),
        )
        chosen = self._graph.add(name, "mode=send_frame:deint=interlaced")
        sink = self._graph.add("buffersink")
        source.link_to(chosen)
        chosen.link_to(sink)
        self._graph.configure()

    def takes(self, frame: Any) -> bool:
        return _shape(frame) == self._shape

    def through(self, each: Decoded) -> Iterator[Decoded]:
        self._waiting.append(each)
        # Timestamps of its own, because those in the file may not increase.
        each.frame.pts, each.frame.time_base = self._count, Fraction(1, 25)
        self._count += 1
        self._graph.push(each.frame)
        yield from self._ready()

    def end(self) -> Iterator[Decoded]:
        self._graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[Decoded]:
        import av

        while self._waiting:
            try:
                frame: Any = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield replace(self._waiting.popleft(), frame=frame)


def _shape(frame: Any) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name
