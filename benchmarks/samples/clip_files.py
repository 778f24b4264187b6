"""Small videos whose frames show their number: frame n is a grey of 8 n + 4."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor


def numbered_frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), 8 * number + 4, np.uint8)


def numbers_of(frames: Tensor) -> list[int]:
    """The numbers that decoded frames ``f h w 3`` show."""
    return ((frames.float().mean((1, 2, 3)) - 4) / 8).round().int().tolist()


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: int = 10,
    times: list[int] | None = None,
    aspect: Fraction | None = None,
    intra: bool = False,
    **options: str,
) -> Path:
    """Encode RGB or RGBA ``frames``; ``times`` are in hundredths of a second.

    With ``intra`` every frame decodes by itself.
    """
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=100 if times else rate)
        stream.pix_fmt = pixels
        if intra:
            stream.codec_context.gop_size = 1
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.shape[:2]
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


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth, colourful, horizontally periodic picture ``h w 3`` uint8."""
    waves = np.fft.rfft2(np.random.default_rng(seed).random((height, width, 3)), axes=(0, 1))
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    waves *= np.exp(-((rows**2 + columns**2) * 300))[..., None]
    picture = np.fft.irfft2(waves, (height, width), axes=(0, 1))
    picture -= picture.min()
    return (picture / picture.max() * 255).astype(np.uint8)


def sliding(count: int, step: int, width: int = 64, height: int = 48, seed: int = 0) -> Tensor:
    """An IMAGE batch in which the whole picture moves ``step`` pixels to the right each frame."""
    picture = texture(width, height, seed)
    frames = [np.roll(picture, step * number, axis=1) for number in range(count)]
    return torch.from_numpy(np.stack(frames)).float() / 255
