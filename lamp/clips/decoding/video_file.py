"""Decode video files with PyAV: choice of the stream, frames and their display times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ...errors import ClipError
from .containers import Crop, Outline, outline
from .deinterlacing import deinterlaced
from .pixels import Decoded, Painter
from .reader import MAX_PIXELS, ClipFacts, Readable, SourceFrame, Watch, WatchedFile, open_clip
from .times import LEAPING, REORDERED, Clock, in_order, peek

if TYPE_CHECKING:
    import av

_MOST_PACKETS = 2_000_000
_MOST_HELD = 64  # durations kept for later frames
# FFmpeg's stream disposition flags.
_DEFAULT, _ATTACHED, _THUMBNAILS, _STILL = 1, 0x400, 0x800, 0x100000
_LIMITS = {"max_pixels": str(MAX_PIXELS)}
_FORMATS = "mp4,matroska,avi,gif,apng,mpegts,mpeg,mpegvideo,asf,flv,ogg"
# The supported containers. FFmpeg goes by content: without this list, a text file could be a
# playlist that opens other files, addresses and ports. These are container options, because options
# for streams too crash PyAV before 17 on an FLV.
_OPEN = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}


class VideoFile:
    """An open video file and the stream that is read from it.

    Close it after use. Raises ClipError, or PyAV's errors, if it is not a supported video.
    """

    def __init__(self, clip: Readable, watch: Watch) -> None:
        import av

        self._clip, self._watch = clip, watch
        self.facts, self._packets = ClipFacts(), 0
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_clip(clip))
            self.outline: Outline = outline(WatchedFile(file, watch))  # type: ignore[arg-type]
            watched = WatchedFile(file, watch, self.outline.end)
            self.container: Any = stack.enter_context(av.open(watched, container_options=_OPEN))
            self.stream = _chosen_stream(self.container, clip)
            self._stack = stack.pop_all()
        self.facts.rate = float(self.stream.average_rate or self.stream.guessed_rate or 0) or None
        if self.outline.unread:
            self.facts.note(
                "holds several films in a row, of which at most the first two are read. Join them "
                "with ffmpeg (-f concat), or split the file."
            )
        self._tick = float(self.stream.time_base or 1)
        self._begin = self._first_time()
        crop, aspect = self._shape()
        self._painter = Painter(self.stream, aspect, crop, self.facts)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def frames(self, start: float) -> Iterator[SourceFrame]:
        """All frames in display order, at least those from `start` on.

        Raises ClipError where the file is damaged, and at the end if it is incomplete.
        """
        leaps = self.container.format.name in LEAPING
        # Not where the clock may restart, so that a time does not identify a position.
        decoded = self._in_order(True) if leaps or not start else self._sought(start)
        clock = Clock(1 / (self.facts.rate or 25), leaps)
        for each in deinterlaced(decoded, self.facts):
            time = None if each.time is None else clock.shown(each.time) - self._begin
            if clock.joined:
                self.facts.note(
                    f"has timestamps that restart {clock.joined:.1f} seconds after its start, as "
                    "in files joined byte by byte. The parts are read one after the other."
                )
            self._watch.moved()
            yield SourceFrame(time, partial(self._painter.paint, each), each.held, self.facts)

    def _sought(self, start: float) -> Iterator[Decoded]:
        """The frames from a keyframe before `start` on, to skip earlier ones."""
        # Earlier, because some containers seek by the order of storage.
        for time in (max(start - REORDERED / (self.facts.rate or 25), 0.0), 0.0):
            self.container.seek(int((time + self._begin) / self._tick), stream=self.stream)
            decoded = self._in_order(False)
            first = next(decoded, None)
            # With an uneven rate it may still be one after it: then the whole film is read.
            if first is not None and (first.time or 0.0) - self._begin <= start:
                break
        return decoded if first is None else chain([first], decoded)

    def count(self) -> int:
        """The number of frames without decoding, not exact for every file."""
        count = sum(1 for packet in self._demuxed() if packet.size and not packet.is_discard)
        self._check_complete()
        return count

    def _first_time(self) -> float:
        """Where the container's clock begins, in seconds; a recorder's may run for hours. In mp4
        and mov it begins at 0, and a film that starts later is meant to."""
        first = self.container.start_time
        if first is None or self.container.format.name.startswith("mov"):
            return 0.0
        # Sound may begin a little below 0, by its codec's delay, without the film.
        return max(first / 1_000_000, min((self.stream.start_time or 0) * self._tick, 0.0))

    def _shape(self) -> tuple[Crop, float]:
        """The crop, and a pixel's width / height; absurd values are ignored."""
        films = [s for s in self.container.streams.video if not _is_cover(s)]
        crops = self.outline.crops
        crop = crops[films.index(self.stream)] if len(crops) == len(films) else Crop()
        context = self.stream.codec_context
        if crop.left + crop.right >= context.width or crop.top + crop.bottom >= context.height:
            crop = Crop()
        aspect = crop.aspect or float(self.stream.sample_aspect_ratio or 1)
        return crop, aspect if 0.1 < aspect < 10 else 1.0

    def _in_order(self, whole: bool) -> Iterator[Decoded]:
        """All frames in display order."""
        packets = self._demuxed()
        if not self.stream.codec_context.has_b_frames:
            return self._decoded(packets, whole)
        first, timed = peek(packets)
        frames = self._decoded(chain(first, packets), whole)
        return frames if timed else in_order(frames)

    def _decoded(self, packets: Iterator[av.Packet], whole: bool) -> Iterator[Decoded]:
        decoder, count = _decoder(self.stream), 0
        held: dict[int, float] = {}
        for packet in packets:
            self._watch.check()
            if not packet.size and packet.dts is not None:
                continue  # a repeated picture; the decoder would take it for the end
            if packet.pts is not None and packet.duration:
                held[packet.pts] = packet.duration * self._tick
            for frame in decoder.decode(packet):
                pts = frame.pts
                time = count / (self.facts.rate or 25) if pts is None else pts * self._tick
                # At the start it only means that the film was cut from a longer one.
                if frame.is_corrupt and count:
                    raise ClipError(
                        f"The clip '{self._clip.name}' is damaged {time:.1f} seconds after its "
                        "start. Replace it, or cut it before that."
                    )
                count += 1
                tags, turned = self._painter.tags(frame), self._painter.turned(frame)
                yield Decoded(time, frame, held.pop(pts, None), tags, turned)
            while len(held) > _MOST_HELD:
                del held[next(iter(held))]
        if whole:
            self._check_complete()

    def _demuxed(self) -> Iterator[av.Packet]:
        for packet in self.container.demux(self.stream):
            self._watch.check()
            # Empty packets repeat a picture and count; the end of the stream has no time.
            self._packets += packet.size > 0 or packet.dts is not None
            if self._packets > _MOST_PACKETS:
                raise ClipError(
                    f"The clip '{self._clip.name}' has more than {_MOST_PACKETS:,} frames. Cut it "
                    "to the part with the motion."
                )
            yield packet

    def _check_complete(self) -> None:
        """Raise ClipError if the file ends before its pictures do."""
        packets, promised = self._packets, self.stream.frames
        # An mp4 may end with data that is not displayed; its tables list every frame.
        tables = self.container.format.name.startswith("mov") and promised > 0
        if not self.outline.cut or (tables and packets >= promised):
            return
        missing = f"{packets} of {promised} frames" if tables else f"only {packets} frames"
        raise ClipError(
            f"The clip '{self._clip.name}' is incomplete: it has {missing}. Copy or download it "
            "again."
        )


def _is_cover(stream: Any) -> bool:
    """Whether a stream is a cover or thumbnail."""
    return bool(_flags(stream) & (_ATTACHED | _STILL | _THUMBNAILS))


def _flags(stream: Any) -> int:
    # A plain number in newer PyAV versions.
    return int(getattr(stream.disposition, "value", stream.disposition))


def _chosen_stream(container: Any, clip: Readable) -> av.VideoStream:
    """No cover or still; of the others the default stream, then the largest."""
    films = [s for s in container.streams.video if not _is_cover(s)]
    if not films:
        covers = ", only a cover" if container.streams.video else ", only sound"
        raise ClipError(f"'{clip.name}' has no picture{covers}. Remove it.")
    readable = [s for s in films if s.codec_context is not None]
    if not readable:
        raise ClipError(f"'{clip.name}' has an unsupported codec. Convert it to mp4 (H.264).")
    stream = max(
        readable,
        key=lambda s: (
            s.frames != 1,
            _flags(s) & _DEFAULT,
            s.codec_context.width * s.codec_context.height,
        ),
    )
    # Not by frame: on damaged files FFmpeg's frame threads can deadlock.
    stream.thread_type = "SLICE"
    stream.codec_context.options = _LIMITS
    return stream


def _decoder(stream: av.VideoStream) -> Any:
    """The stream's decoder, or for VP8/VP9 with transparency one that supports it."""
    import av

    if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in ("vp8", "vp9"):
        name = "libvpx" if stream.codec_context.name == "vp8" else "libvpx-vp9"
        with contextlib.suppress(ValueError):  # missing in some builds of FFmpeg
            decoder = av.CodecContext.create(name, "r")
            decoder.options = _LIMITS
            return decoder
    return stream.codec_context
