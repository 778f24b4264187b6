"""Decode pictures and animations with Pillow: listed formats only, in small memory."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .hdr import HLG, PQ
from .reader import MAX_PIXELS, ClipFacts, Readable, SourceFrame, Watch, open_clip, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

IMAGE_ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm",
)  # fmt: skip
ANIMATED_ENDINGS = (".webp", ".png", ".apng", ".avif")
"""Of formats that may hold several pictures."""
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM")
# Only these: for some formats Pillow starts a program or opens other files.
HEAD = 2**16
"""Bytes from which the kind of a file is determined."""
_PNG = b"\x89PNG\r\n\x1a\n"
_STRIP = 2**20  # pixels converted at a time
_BRIGHTEST_FLOAT = 2.0  # floats in 0..1 may overshoot a little
_HDR = (
    "holds HDR pictures, which are read as SDR. If the colours look wrong in the contact sheet, "
    "convert them to SDR."
)
_ORIENTATION = 0x112  # a tag of EXIF
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


def open_picture(file: BinaryIO) -> Image.Image:
    """A picture, not yet decoded. Raises ValueError if it is larger than twice 8K."""
    from PIL import Image

    # Before Pillow opens it, because it allocates memory for an animation at once.
    head = file.read(30)
    _check_size(*_webp_size(head))
    file.seek(0)
    known = [name for name in _FORMATS if name != "AVIF" or knows_avif()]
    image = Image.open(file, formats=known)
    _check_size(image.width, image.height)
    hidden = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(hidden, int):
        bits = min(head[24], 8)
        # Pillow scales the pixels to 8 bits, but not the transparent value.
        image.info["transparency"] = hidden * 255 // (2**bits - 1)
    return image


def is_hdr(head: bytes) -> bool:
    """Whether the start of a PNG (chunk cICP) or AVIF (box colr) marks it as HDR (PQ or HLG), which
    Pillow ignores."""
    for mark, size in ((b"cICP", 1), (b"colrnclx", 2)):  # bytes of each number
        place = head.find(mark) + len(mark) + size  # behind the primaries
        if mark in head and int.from_bytes(head[place : place + size], "big") in (PQ, HLG):
            return True
    return False


def knows_avif() -> bool:
    """Whether this version of Pillow reads AVIF."""
    return importlib.util.find_spec("PIL.AvifImagePlugin") is not None


def is_picture(head: bytes) -> bool:
    """Whether Pillow reads a file with these first `HEAD` bytes: WebP, AVIF and still PNG. Animated
    PNG is left to FFmpeg, because Pillow composes half-transparent frames differently."""
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return knows_avif()
    if head[:8] == _PNG:
        return not _is_apng(head)
    return (head[:4], head[8:12]) == (b"RIFF", b"WEBP")


def _is_apng(head: bytes) -> bool:
    """Whether a PNG has a chunk acTL before its pixels."""
    place = len(_PNG)
    while place + 8 <= len(head):
        name = head[place + 4 : place + 8]
        if name in (b"acTL", b"IDAT"):
            return name == b"acTL"
        place += 12 + int.from_bytes(head[place : place + 4], "big")
    return False


def is_animated(path: Path) -> bool | None:
    """Whether a file holds several pictures; None if it is broken."""
    try:
        with path.open("rb") as file, open_picture(file) as picture:
            return getattr(picture, "n_frames", 1) > 1
    except Exception:  # Pillow leaks errors of its helpers
        return None


def animated_frames(clip: Readable, watch: Watch) -> Generator[SourceFrame, None, None]:
    """The frames of an animation, with their times."""
    from PIL import ImageOps, ImageSequence

    facts, time = ClipFacts(), 0.0
    with open_clip(clip) as file:
        if is_hdr(file.read(HEAD)):
            facts.note(_HDR)
        file.seek(0)
        with open_picture(file) as picture:
            turned = picture.getexif().get(_ORIENTATION, 1) != 1
            for frame in ImageSequence.Iterator(picture):
                watch.check()
                watch.moved()
                # Converted now, because the next step overwrites the picture.
                pixels = picture_bytes(ImageOps.exif_transpose(frame) if turned else frame)
                held = (frame.info.get("duration") or 100) / 1000
                if picture.format == "AVIF":  # its durations are rounded to milliseconds
                    time = frame.info.get("timestamp", time * 1000) / 1000
                yield SourceFrame(time, partial(torch.clone, pixels), held, facts)
                time += held


def folder_frames(files: list[Path]) -> Generator[SourceFrame, None, None]:
    """One frame per file."""
    facts = ClipFacts()
    for file in files:
        with contextlib.suppress(OSError), file.open("rb") as stream:
            if is_hdr(stream.read(HEAD)):
                facts.note(_HDR)
        yield SourceFrame(None, partial(_file_bytes, file), facts=facts)


def _file_bytes(path: Path) -> Tensor:
    from PIL import ImageOps

    with reading(path, f"{path.parent.name}/{path.name}"):
        with path.open("rb") as file, open_picture(file) as image:
            count = getattr(image, "n_frames", 1)
            if count > 1 and image.format in ("WEBP", "PNG", "AVIF", "TIFF"):
                raise ValueError(f"it holds {count} pictures: it is a clip, not a frame")
            ImageOps.exif_transpose(image, in_place=True)
            return picture_bytes(image)


def picture_bytes(image: Image.Image) -> Tensor:
    """``h w 3`` uint8 over black; more than 8 bits are scaled down."""
    out = torch.empty(image.height, image.width, 3, dtype=torch.uint8)
    for top, part in _strips(image):
        if image.mode == "F" or image.mode.startswith("I"):
            grey = torch.from_numpy(_grey(image, np.array(part)))
            out[top : top + len(grey)] = grey[..., None]
        else:
            kind = "RGBA" if _is_transparent(image) else "RGB"
            pixels = on_black(torch.from_numpy(np.array(part.convert(kind))))
            out[top : top + len(pixels)] = pixels
    return out


def on_black(pixels: Tensor) -> Tensor:
    """``h w 3`` from ``h w 3`` or ``h w 4`` uint8, transparent parts over black."""
    if pixels.shape[-1] == 3:
        return pixels
    if (pixels[..., 3] == 255).all():
        return pixels[..., :3].contiguous()
    out = torch.empty_like(pixels[..., :3], memory_format=torch.contiguous_format)
    rows = max(_STRIP // pixels.shape[1], 1)
    for into, part in zip(out.split(rows), pixels.split(rows), strict=True):
        into.copy_((part[..., :3].int() * part[..., 3:] + 127) // 255)
    return out


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    image.load()
    rows = max(_STRIP // image.width, 1)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _is_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")


def _grey(image: Image.Image, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey of more than 8 bits -> 0..255; the transparent value of a PNG becomes black."""
    if image.mode == "F":
        if not np.isfinite(values).all() or values.max() > _BRIGHTEST_FLOAT:
            raise ValueError(
                f"its floats go up to {values.max():g}, not 1. Save it with 8 or 16 bits"
            )
        most: float = 1.0
    else:
        values, most = _whole_numbers(image, values)
    grey = (np.clip(values / most, 0.0, 1.0) * 255).round().astype(np.uint8)
    if isinstance(hidden := image.info.get("transparency"), int):
        grey[values == hidden] = 0
    return grey


def _whole_numbers(image: Image.Image, values: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """The intended values, and the value of white. White follows from the header, not from the
    pixels, so that all pictures are scaled alike."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return values, 65535.0
    bits, signed = tags.get(_BITS, (16,))[0], tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
    if bits == 32 and not signed:
        values = values.astype(np.uint32)  # Pillow reads them as signed
    most = float(2 ** (bits - signed) - 1)
    return (most - values if tags.get(_PHOTOMETRIC) == 0 else values), most


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} is larger than twice 8K")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height of an extended WebP, the only kind with a large canvas."""
    if head[:4] != b"RIFF" or head[8:16] != b"WEBPVP8X" or len(head) < 30:
        return 0, 0
    return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
