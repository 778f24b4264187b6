"""Little videos whose frames tell their own number: frame n is a grey of 8 n + 4."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor


def numbered_frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), 8 * number + 4, np.uint8)


def numbers_of(frames: Tensor) -> list[int]:
    """The numbers that decoded frames ``f h w 3`` show."""
    return ((frames.float().mean((1, 2, 3)) - 4) / 8).round().int().tolist()


def write_video(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 10,
    times: list[int] | None = None,
    aspect: Fraction | None = None,
    **options: str,
) -> Path:
    """Encode RGB or RGBA ``frames``; ``times`` are in hundredths of a second."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=100 if times else rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, frame in enumerate(frames):
            kind = "rgba" if frame.shape[-1] == 4 else "rgb24"
            picture = av.VideoFrame.from_ndarray(frame, kind)
            if times:
                picture.pts, picture.time_base = times[number], Fraction(1, 100)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_numbered(
    path: Path, count: int, width: int = 64, height: int = 48, **how: object
) -> Path:
    frames = [numbered_frame(number, width, height) for number in range(count)]
    return write_video(path, frames, **how)
