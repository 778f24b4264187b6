"""Containers written byte by byte, where no muxer writes what is needed."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from benchmarks.samples.clip_files import numbered_frame

SEGMENT, TRACKS, ENTRY, VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def write_avi(path: Path, numbers: Sequence[int | None], rate: int = 10) -> Path:
    """Motion JPEG of numbered frames; None is an empty chunk, with which the picture stays."""
    chunks, index = b"", b""
    for number in numbers:
        stream = io.BytesIO()
        if number is not None:
            Image.fromarray(numbered_frame(number)).save(stream, "JPEG", quality=95, subsampling=0)
        data = stream.getvalue()
        index += b"00dc" + struct.pack("<III", 16, 4 + len(chunks), len(data))
        chunks += _chunk(b"00dc", data)
    count = len(numbers)
    main = struct.pack("<14I", 1_000_000 // rate, 0, 0, 0x10, count, 0, 1, 0, 64, 48, 0, 0, 0, 0)
    head = struct.pack(
        "<4s4sIHHIIIIIIIIHHHH",
        b"vids", b"MJPG", 0, 0, 0, 0, 1, rate, 0, count, 0, 0, 0, 0, 0, 64, 48,
    )  # fmt: skip
    form = struct.pack("<IiiHH4sIiiII", 40, 64, 48, 1, 24, b"MJPG", 64 * 48 * 3, 0, 0, 0, 0)
    stream_list = _chunk(b"LIST", b"strl" + _chunk(b"strh", head) + _chunk(b"strf", form))
    header = _chunk(b"LIST", b"hdrl" + _chunk(b"avih", main) + stream_list)
    body = b"AVI " + header + _chunk(b"LIST", b"movi" + chunks) + _chunk(b"idx1", index)
    path.write_bytes(_chunk(b"RIFF", body))
    return path


def with_mkv_crop(
    path: Path, left: int, top: int, right: int, bottom: int, screen: tuple[int, int] | None = None
) -> None:
    """Write a crop into the first video track of a Matroska file, and its size on the screen."""
    numbers = {0x54CC: left, 0x54BB: top, 0x54DD: right, 0x54AA: bottom}
    if screen:
        numbers |= {0x54B0: screen[0], 0x54BA: screen[1]}
    added = b"".join(_ebml(name, number.to_bytes(4, "big")) for name, number in numbers.items())
    dropped = {0x54B0, 0x54BA, 0x54B2}  # sizes on the screen that the muxer wrote
    path.write_bytes(_rewritten(path.read_bytes(), [SEGMENT, TRACKS, ENTRY, VIDEO], added, dropped))


def with_mp4_crop(
    path: Path, left: int, top: int, right: int, bottom: int, screen: tuple[int, int] | None = None
) -> None:
    """Write a clean aperture, and its size on the screen, into the first film of an mp4 whose
    tables lie behind its pictures."""
    data = path.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    entry = data.index(b"stsd") + 12  # its first entry begins with its size
    size = int.from_bytes(data[entry : entry + 4], "big")
    width, height = struct.unpack(">HH", data[entry + 32 : entry + 36])
    wide, high = width - left - right, height - top - bottom
    numbers = (wide, 1, high, 1, left - right, 2, top - bottom, 2)
    box = struct.pack(">I4sIIIIiIiI", 40, b"clap", *numbers)
    out = bytearray(data[: entry + size] + box + data[entry + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        place = out.index(name, data.index(b"moov")) - 4
        longer = int.from_bytes(out[place : place + 4], "big") + 40
        out[place : place + 4] = longer.to_bytes(4, "big")
    out[entry : entry + 4] = (size + 40).to_bytes(4, "big")
    if screen:
        head = out.index(b"tkhd") + 80  # its last two numbers, in 1 / 65536
        out[head : head + 8] = struct.pack(">II", *(side << 16 for side in screen))
    path.write_bytes(out)


def _rewritten(data: bytes, names: list[int], added: bytes, dropped: set[int]) -> bytes:
    """Elements with `added` at the end of the one that `names` lead to, without `dropped` there."""
    out, place = b"", 0
    while place < len(data):
        name, size, head = _head(data[place:])
        content = data[place + head : place + head + size]
        if names and name == names[0]:
            content = _rewritten(content, names[1:], added, dropped)
            if len(names) == 1:
                content += added
            out += _ebml(name, content)
        elif names or name not in dropped:
            out += data[place : place + head + size]
        place += head + size
    return out


def _head(data: bytes) -> tuple[int, int, int]:
    """Id, size and length of the head of an element."""
    width = 9 - data[0].bit_length()
    length = 9 - data[width].bit_length()
    size = int.from_bytes(data[width : width + length], "big") & ((1 << 7 * length) - 1)
    return int.from_bytes(data[:width], "big"), size, width + length


def _ebml(name: int, content: bytes) -> bytes:
    size = (1 << 56 | len(content)).to_bytes(8, "big")
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + size + content
