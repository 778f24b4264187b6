"""The decoders behind training clips: video files, animated pictures, folders of images."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from .errors import ClipError, LampError

if TYPE_CHECKING:
    import av
    from PIL import Image

log = logging.getLogger("lamp")

MAX_PIXELS = 2**26
"""Of a frame: twice 8K. A file of a few bytes can claim any size, and would be given the memory."""
_LIMITS = {"max_pixels": str(MAX_PIXELS)}
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class VideoBytes:
    """A video file that another node keeps in memory."""

    name: str
    data: bytes


Readable = Path | VideoBytes
"""What the decoders read: a file, a folder of images, a file in memory."""


@dataclass(frozen=True)
class SourceFrame:
    """A frame that is decoded but not yet turned into pixels: many are only passed by."""

    time: float | None
    """Seconds from the clip's own zero; None where the source has no clock."""
    load: Callable[[], Tensor]
    """Gives the picture, upright and in square pixels: ``h w 3`` uint8, on black."""


def source_frames(
    clip: Readable, start: float = 0.0, end: float | None = None
) -> Generator[SourceFrame, None, None]:
    """All frames of a clip in display order; close the iterator to let go of the file.

    With `start` and `end`, in seconds, only the frames from the one (counted) to the other (not
    counted); frames without a time all belong. Raises ClipError if the clip cannot be read to the
    point where the iterator is left; the error tells after how many frames.
    """
    count = 0
    with reading(clip, after=lambda: f" after frame {count}" if count else ""):
        if isinstance(clip, Path) and clip.is_dir():
            source = _folder_frames(clip)
        else:
            source = _picture_frames(clip) if is_picture(clip) else _video_frames(clip, start)
        with contextlib.closing(source):
            for frame in source:
                if frame.time is not None and end is not None and frame.time >= end:
                    break
                if frame.time is None or frame.time >= start:
                    count += 1
                    yield frame
        if not count:
            part = " at the chosen time" if start or end is not None else ""
            raise ClipError(f"'{clip.name}' has no pictures in it{part}. Leave it out.")


def count_frames(
    clip: Readable, start: float = 0.0, end: float | None = None
) -> tuple[int, float | None]:
    """Number of frames (from `start` to `end`), by counting (headers are wrong too often), and
    their rate per second."""
    if isinstance(clip, Path) and clip.is_dir():
        return len(image_files(clip)), None
    times, rate = (_picture_times if is_picture(clip) else _video_times)(clip)
    last = float("inf") if end is None else end
    return sum(time is None or start <= time < last for time in times), rate


def image_files(folder: Path) -> list[Path]:
    """The images of a folder, in natural order."""
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
    ]
    return sorted(files, key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts runs of digits by their value."""
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def is_picture(clip: Readable) -> bool:
    """Animated webp, which FFmpeg does not read."""
    return clip.name.lower().endswith(".webp")


def open_clip(clip: Readable) -> BinaryIO:
    """The bytes of a clip, from the beginning."""
    return io.BytesIO(clip.data) if isinstance(clip, VideoBytes) else clip.open("rb")


@contextlib.contextmanager
def reading(
    clip: Readable | str, name: str = "", after: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Turn whatever the decoders throw into an error that names the clip (or gives `name`).

    `clip` is a name alone where there is no file; `after` tells how far the reading came.
    """
    name = name or (clip if isinstance(clip, str) else clip.name)
    try:
        yield
    except (LampError, MemoryError):
        raise
    except Exception as error:  # PyAV and PIL share no base class, and PIL leaks others' errors
        log.debug("reading %s", name, exc_info=True)
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(clip, Path):
            if str(clip) in reason:  # PIL's words for it
                reason = "its content is not what its name says"
            if not clip.exists():
                reason = "there is no such file"
            elif clip.is_file() and not clip.stat().st_size:
                reason = "the file is empty"
        raise ClipError(
            f"The clip '{name}' cannot be read{after()}: {reason}. "
            "Replace it, convert it to mp4, or take it out of the folder."
        ) from error


# --- video files -----------------------------------------------------------------------------


def _video_frames(clip: Readable, start: float) -> Generator[SourceFrame, None, None]:
    import av
    from av.video.reformatter import VideoReformatter

    # Opened by us: FFmpeg would take names such as 'a:b.mp4' for an address.
    with open_clip(clip) as file, av.open(file, "r") as container:
        stream = _video_stream(container, clip)
        decoder, reformatter, rate = _decoder(stream), VideoReformatter(), _rate(stream)
        aspect = _pixel_aspect(stream)
        if start and stream.time_base:
            # To the last frame before it that decodes by itself: no need to go through a film.
            container.seek(int(start / stream.time_base), stream=stream)
        count, seen = 0, _Seen()
        for packet in seen.watch(container.demux(stream)):
            for frame in decoder.decode(packet):
                time = count / rate if frame.time is None else frame.time
                # At the start it only means that the film was cut out of a longer one.
                if frame.is_corrupt and count:
                    raise ClipError(
                        f"The clip '{clip.name}' is damaged {time:.1f} seconds after its start. "
                        "Replace it, or cut it before that."
                    )
                count += 1
                yield SourceFrame(time, partial(_pixels, frame, aspect, reformatter))
        if not start:
            seen.check_complete(container, stream, clip)


def _video_stream(container: Any, clip: Readable) -> av.VideoStream:
    if not container.streams.video:
        raise ClipError(f"'{clip.name}' has no picture, only sound. Leave it out.")
    stream = container.streams.video[0]
    # Never frame by frame: on damaged files such threads of FFmpeg may wait for each other forever.
    stream.thread_type = "SLICE"
    stream.codec_context.options = _LIMITS
    return stream


def _decoder(stream: av.VideoStream) -> Any:
    """The stream's own decoder, or for VP8/VP9 with transparency the one that can read it."""
    import av

    if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in ("vp8", "vp9"):
        name = "libvpx" if stream.codec_context.name == "vp8" else "libvpx-vp9"
        with contextlib.suppress(ValueError):  # not every build of FFmpeg has them
            decoder = av.CodecContext.create(name, "r")
            decoder.options = _LIMITS
            return decoder
    return stream.codec_context


def _pixels(frame: av.VideoFrame, aspect: float, reformatter: Any) -> Tensor:
    """``h w 3`` uint8: square pixels, on black, upright."""
    import numpy as np

    width = max(round(frame.width * aspect), 1)
    alpha = any(component.is_alpha for component in frame.format.components)
    kind = "rgba" if alpha else "rgb24"
    pixels = reformatter.reformat(frame, width, frame.height, kind).to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90)
    upright = np.ascontiguousarray(np.rot90(pixels, turns))
    return _on_black(torch.from_numpy(upright))


def _pixel_aspect(stream: av.VideoStream) -> float:
    """Width of a pixel by its height; absurd headers are not believed."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.1 < aspect < 10 else 1.0


def _rate(stream: av.VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _video_times(clip: Readable) -> tuple[list[float | None], float]:
    import av

    with open_clip(clip) as file, av.open(file, "r") as container:
        stream = _video_stream(container, clip)
        seen = _Seen()
        times = [
            float(packet.pts * packet.time_base) if packet.pts is not None else None
            for packet in seen.watch(container.demux(stream))
            if packet.size and not packet.is_discard
        ]
        seen.check_complete(container, stream, clip)
        return times, _rate(stream)


@dataclass
class _Seen:
    """What of a file has passed by, to tell whether its end is missing."""

    packets: int = 0
    seconds: float = 0.0

    def watch(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        for packet in packets:
            if packet.size:
                self.packets += 1
                if packet.pts is not None and packet.time_base:
                    self.seconds = max(self.seconds, float(packet.pts * packet.time_base))
            yield packet

    def check_complete(self, container: Any, stream: av.VideoStream, clip: Readable) -> None:
        """The header promises more than the file holds (only where headers are reliable)."""
        kind, missing = container.format.name, ""
        whole = {"mov,mp4,m4a,3gp,3g2,mj2": 1.0, "avi": 0.9}.get(kind, 0.0)
        if self.packets < whole * stream.frames:
            missing = f"{self.packets} of {stream.frames} frames"
        if "matroska" in kind and len(container.streams) == 1 and container.duration:
            promised = container.duration / 1e6
            if self.seconds + 2 / _rate(stream) < 0.9 * promised:
                missing = f"{self.seconds:.1f} of {promised:.1f} seconds"
        if kind == "gif" and not _has_gif_trailer(clip):
            missing = f"only {self.packets} frames, the last one in part,"
        if missing:
            raise ClipError(
                f"The clip '{clip.name}' is incomplete: {missing} are there. Copy or download it "
                "again."
            )


def _has_gif_trailer(clip: Readable) -> bool:
    with open_clip(clip) as file:
        file.seek(max(file.seek(0, 2) - 64, 0))
        return file.read().rstrip(b"\0").endswith(b";")


# --- animated pictures and folders of images --------------------------------------------------


def _picture_frames(clip: Readable) -> Generator[SourceFrame, None, None]:
    from PIL import Image, ImageSequence

    with open_clip(clip) as file, Image.open(file) as picture:
        _check_size(picture)
        time = 0.0
        for frame in ImageSequence.Iterator(picture):
            pixels = _image_pixels(frame)  # now: the next step overwrites the picture
            yield SourceFrame(time, partial(torch.clone, pixels))
            time += (frame.info.get("duration") or 100) / 1000


def _picture_times(clip: Readable) -> tuple[list[float | None], float]:
    times = [frame.time for frame in _picture_frames(clip)]
    last = times[-1] or 0.0
    return times, (len(times) - 1) / last if last else 10.0


def _folder_frames(path: Path) -> Generator[SourceFrame, None, None]:
    for file in image_files(path):
        yield SourceFrame(None, partial(_file_pixels, file))


def _file_pixels(file: Path) -> Tensor:
    from PIL import Image, ImageOps

    with reading(file, f"{file.parent.name}/{file.name}"), Image.open(file) as image:
        _check_size(image)
        return _image_pixels(ImageOps.exif_transpose(image))


def _check_size(image: Image.Image) -> None:
    """Before its pixels are decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} is larger than twice 8K")


def _image_pixels(image: Image.Image) -> Tensor:
    import numpy as np

    return _on_black(torch.from_numpy(np.array(image.convert("RGBA"))))


def _on_black(pixels: Tensor) -> Tensor:
    """``h w 3`` from ``h w 3`` or ``h w 4`` uint8, transparent parts becoming black."""
    if pixels.shape[-1] == 3:
        return pixels
    colour, alpha = pixels[..., :3], pixels[..., 3:]
    if (alpha == 255).all():
        return colour.contiguous()
    return ((colour.int() * alpha + 127) // 255).byte()
