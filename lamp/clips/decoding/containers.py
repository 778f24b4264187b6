"""Container facts that FFmpeg does not report: whether a file is complete, and how it is cropped.

Each container is walked by the sizes in it; nothing is decoded. Sources: ISO/IEC 14496-12 (mp4,
mov), RFC 8794 and 9559 (Matroska, WebM), the specifications of AVI, ASF, FLV, Ogg and GIF.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

_MOST_HEADER = 1 << 24  # bytes of a track list
_UNKNOWN = 1 << 62  # a size that is not stated: up to the end


@dataclass(frozen=True)
class Crop:
    """Pixels at the sides of a coded picture that are not displayed.

    ``aspect`` is a pixel's width / height, where only the container states it.
    """

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0
    aspect: float | None = None


@dataclass(frozen=True)
class Outline:
    """Where a file's pictures end, according to its container.

    - ``end``: number of bytes that belong to it, if data may follow (None: all);
    - ``cut``: whether the file ends before its pictures do;
    - ``unread``: whether another film follows those that FFmpeg reads;
    - ``crops``: of each video track in order, if there are any.
    """

    end: int | None = None
    cut: bool = False
    unread: bool = False
    crops: tuple[Crop, ...] = ()


def outline(file: BinaryIO) -> Outline:
    """The outline of a file of any kind; empty for unknown kinds.

    Damage is left to the decoder to report.
    """
    size = file.seek(0, 2)
    head = _at(file, 0, 64)
    for is_kind, walk in _KINDS:
        if is_kind(head):
            return walk(file, size)
    return Outline()


def _at(file: BinaryIO, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


# --- mp4, mov --------------------------------------------------------------------------------

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot", b"uuid")


@dataclass(frozen=True)
class _Part:
    """A part of a file: its name, and where its content starts and ends."""

    name: bytes
    place: int
    end: int


def _boxes(file: BinaryIO, place: int, end: int) -> Iterator[_Part]:
    while place + 8 <= end:
        size, name = struct.unpack(">I4s", _at(file, place, 8).ljust(8, b"\0"))
        head = 8
        if size == 1:
            size, head = int.from_bytes(_at(file, place + 8, 8), "big"), 16
        elif size == 0:
            size = _UNKNOWN
        if size < head:
            return
        yield _Part(name, place + head, place + size)
        place += size


def _walk_mp4(file: BinaryIO, size: int) -> Outline:
    cut, films, crops = False, 0, []
    for box in _boxes(file, 0, size):
        if box.name in (b"mdat", b"moof"):
            cut = box.end > size
        films += box.name == b"moov"
        if box.name == b"moov" and films == 1:
            for track in _boxes(file, box.place, min(box.end, size)):
                if track.name == b"trak":
                    crops += _mp4_crop(file, track)
    return Outline(cut=cut, unread=films > 1, crops=tuple(crops))


def _mp4_crop(file: BinaryIO, track: _Part) -> list[Crop]:
    """The clean aperture of a track, one item; empty if it is not a video track."""
    part = track
    for name in (b"mdia", b"minf", b"stbl", b"stsd"):
        inside = (box for box in _boxes(file, part.place, part.end) if box.name == name)
        found = next(inside, None)
        if found is None:
            return []
        if name == b"mdia" and not _is_video(file, found):
            return []
        part = found
    entry = next(_boxes(file, part.place + 8, part.end), None)
    if entry is None:
        return [Crop()]
    width, height = struct.unpack(">HH", _at(file, entry.place + 24, 4).ljust(4, b"\0"))
    boxes = {box.name: box for box in _boxes(file, entry.place + 78, entry.end)}
    clap = boxes.get(b"clap")
    if clap is None or clap.end - clap.place < 32:
        return [Crop()]
    crop = _clean_aperture(_at(file, clap.place, 32), width, height)
    wide, high = width - crop.left - crop.right, height - crop.top - crop.bottom
    if wide <= 0 or high <= 0:
        return [Crop()]
    shown = _shown_size(file, track)
    if crop == Crop() or b"pasp" in boxes or not all(shown) or shown == (width, height):
        return [crop]
    # The size on the screen is that of the cropped picture. FFmpeg takes it for the whole one's.
    return [replace(crop, aspect=shown[0] / shown[1] * high / wide)]


def _shown_size(file: BinaryIO, track: _Part) -> tuple[float, float]:
    """Width and height of a track on the screen, before it is turned; 0 if they are missing."""
    for box in _boxes(file, track.place, track.end):
        if box.name == b"tkhd":
            width, height = struct.unpack(">II", _at(file, box.end - 8, 8).ljust(8, b"\0"))
            return width / 65536, height / 65536
    return 0.0, 0.0


def _is_video(file: BinaryIO, media: _Part) -> bool:
    return any(
        box.name == b"hdlr" and _at(file, box.place + 8, 4) == b"vide"
        for box in _boxes(file, media.place, media.end)
    )


def _clean_aperture(data: bytes, width: int, height: int) -> Crop:
    """From width, height and the offset of the centre, as fractions."""
    numbers = struct.unpack(">IIIIiIiI", data.ljust(32, b"\0"))
    if not all(numbers[1::2]):
        return Crop()
    wide, high, right, down = (a / b for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    left, top = round((width - wide) / 2 + right), round((height - high) / 2 + down)
    found = Crop(left, top, width - left - round(wide), height - top - round(high))
    return found if min(left, top, found.right, found.bottom) >= 0 else Crop()


# --- Matroska, WebM --------------------------------------------------------------------------

_EBML, _SEGMENT, _CLUSTER, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B
_ENTRY, _TYPE, _VIDEO = 0xAE, 0x83, 0xE0
_FILMS_READ = 2  # by FFmpeg, of films joined byte by byte
_CODED_WIDTH, _CODED_HEIGHT, _SHOWN_WIDTH, _SHOWN_HEIGHT = 0xB0, 0xBA, 0x54B0, 0x54BA
_CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}


def _element(data: bytes) -> tuple[int, int, int]:
    """Id, size (or `_UNKNOWN`) and header length of an EBML element."""
    first = data[0] if data else 0
    width = 9 - first.bit_length() if first else 9
    if width > 4 or len(data) <= width or not data[width]:
        raise ValueError
    length = 9 - data[width].bit_length()
    value = int.from_bytes(data[width : width + length], "big") & ((1 << 7 * length) - 1)
    size = _UNKNOWN if value == (1 << 7 * length) - 1 else value
    return int.from_bytes(data[:width], "big"), size, width + length


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place < len(data):
        name, size, head = _element(data[place : place + 12])
        yield name, data[place + head : place + head + size]
        place += head + size


def _walk_matroska(file: BinaryIO, size: int) -> Outline:
    cut, place, films, promised = False, 0, 0, 0
    crops: tuple[Crop, ...] = ()
    try:
        while place < size:
            name, length, head = _element(_at(file, place, 12))
            if name == _SEGMENT:  # its elements follow
                films += 1
                place, promised = place + head, place + head + length
                continue
            if length == _UNKNOWN:
                break
            if name == _TRACKS and films == 1 and length < _MOST_HEADER:
                crops = tuple(_matroska_crops(_at(file, place + head, length)))
            place += head + length
            cut = name == _CLUSTER and (place > size or place == size < promised < _UNKNOWN)
    except ValueError:  # a truncated header, or not an element
        cut = size - place < 12 and size < promised
    return Outline(cut=cut, unread=films > _FILMS_READ, crops=crops)


def _matroska_crops(tracks: bytes) -> Iterator[Crop]:
    for name, entry in _elements(tracks):
        if name == _ENTRY:
            parts = dict(_elements(entry))
            if parts.get(_TYPE) == b"\x01":
                video = _elements(parts.get(_VIDEO, b""))
                yield _matroska_crop({n: int.from_bytes(v[:8], "big") for n, v in video})


def _matroska_crop(video: dict[int, int]) -> Crop:
    sides = {side: video[name] for name, side in _CROPS.items() if name in video}
    if not any(sides.values()):
        return Crop()
    crop = Crop(**sides)
    # The display size is that of the cropped picture. FFmpeg versions disagree on this.
    wide = video.get(_CODED_WIDTH, 0) - crop.left - crop.right
    high = video.get(_CODED_HEIGHT, 0) - crop.top - crop.bottom
    shown = video.get(_SHOWN_WIDTH, wide), video.get(_SHOWN_HEIGHT, high)
    if wide <= 0 or high <= 0 or not all(shown):
        return Crop()
    return replace(crop, aspect=shown[0] / shown[1] * high / wide)


# --- AVI, ASF, FLV, Ogg ------------------------------------------------------------------------


def _walk_avi(file: BinaryIO, size: int) -> Outline:
    place, cut = 0, False
    while place + 12 <= size:
        name, length, kind = struct.unpack("<4sI4s", _at(file, place, 12))
        if name == b"RIFF":
            place += 12
            continue
        # A recorder that was killed leaves a size of 0, or the maximum.
        if name == b"LIST" and kind == b"movi" and length < 0x7FFFFFFF:
            cut = place + 8 + length > size
        place += 8 + length + length % 2
    return Outline(cut=cut)


_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _walk_asf(file: BinaryIO, size: int) -> Outline:
    place = 0
    while place + 24 <= size:
        head = _at(file, place, 24)
        length = int.from_bytes(head[16:], "little")
        if head[:16] == _ASF_DATA:  # 50 bytes: a live stream of unknown length
            return Outline(cut=length > 50 and place + length > size)
        if length < 24:
            break
        place += length
    return Outline()


def _walk_flv(file: BinaryIO, size: int) -> Outline:
    place = int.from_bytes(_at(file, 5, 4), "big") + 4
    while place + 11 <= size:
        head = _at(file, place, 4)
        if head[0] & 0x1F not in (8, 9, 18):
            return Outline(unread=head[:3] == b"FLV")
        place += 11 + int.from_bytes(head[1:], "big") + 4
    return Outline(cut=place > size + 4)  # the length after the last tag may be missing


def _walk_ogg(file: BinaryIO, size: int) -> Outline:
    place = 0
    while place + 27 <= size:
        head = _at(file, place, 27 + 255)
        if head[:4] != b"OggS":
            return Outline()
        count = head[26]
        place += 27 + count + sum(head[27 : 27 + count])
    rest = _at(file, place, 4)
    return Outline(cut=place > size or (rest != b"" and b"OggS".startswith(rest)))


# --- GIF ---------------------------------------------------------------------------------------


_MOST_GIF = 1 << 28  # bytes that are read into memory


def _walk_gif(file: BinaryIO, size: int) -> Outline:
    """Up to the trailer; data after it does not belong to the file. Without a trailer, a file that
    ends with a whole block counts as complete."""
    if size > _MOST_GIF:
        return Outline()
    data = _at(file, 0, size)

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    place = 13 + table(data[10]) if size > 10 else size + 1
    while place < size:
        kind = data[place]
        if kind == 0x3B:
            return Outline(end=place + 1)
        if kind == 0x21:
            place += 2
        elif kind == 0x2C and place + 9 < size:
            place += 11 + table(data[place + 9])
        elif kind == 0x2C:
            return Outline(cut=True)
        else:
            # Zeros between blocks are skipped; anything else does not belong to the GIF.
            place += 1
            if kind:
                return Outline(end=place - 1)
            continue
        while place < size and data[place]:
            place += data[place] + 1
        place += 1
    return Outline(cut=place > size)


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], Outline]], ...] = (
    (lambda head: head[:4] == b"GIF8", _walk_gif),
    (lambda head: head[:4] == b"\x1a\x45\xdf\xa3", _walk_matroska),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _walk_avi),
    (lambda head: head[:16] == _ASF_HEADER, _walk_asf),
    (lambda head: head[:3] == b"FLV", _walk_flv),
    (lambda head: head[:4] == b"OggS", _walk_ogg),
    (lambda head: head[4:8] in _BOXES, _walk_mp4),
)
