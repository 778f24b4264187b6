"""Special cases of clips: animated PNG, EXIF, grey levels, HDR without YUV."""

from __future__ import annotations

import itertools
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lamp.clips.captions import find_caption
from lamp.clips.decoding.choose import source_frames

SIZE = (24, 32)
Frame = tuple[int, int, NDArray[np.uint8], int, int]  # top, left, rgba, disposal, blend


def read(path: Path) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """The pictures of a clip, and its notes."""
    pictures = []
    for frame in source_frames(path):
        pictures.append(frame.load().numpy())
        notes = frame.facts.notes
    return pictures, list(notes)


# --- animated PNG ---------------------------------------------------------------------------------


def write_apng(path: Path, frames: list[Frame]) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data)
        )  # fmt: skip

    height, width = SIZE
    out = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    )
    out += chunk(b"acTL", struct.pack(">II", len(frames), 0))
    number = 0
    for index, (top, left, rgba, disposal, blend) in enumerate(frames):
        h, w = rgba.shape[:2]
        control = struct.pack(">IIIIIHHBB", number, w, h, left, top, 1, 10, disposal, blend)
        out, number = out + chunk(b"fcTL", control), number + 1
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rgba))
        if index:
            data, number = struct.pack(">I", number) + data, number + 1
        out += chunk(b"fdAT" if index else b"IDAT", data)
    path.write_bytes(out + chunk(b"IEND", b""))


def composed(frames: list[Frame]) -> list[NDArray[np.uint8]]:
    """Composed by the specification of APNG, then over black."""
    canvas, shown = np.zeros((*SIZE, 4)), []
    for top, left, rgba, disposal, blend in frames:
        before = canvas.copy()
        place = (slice(top, top + rgba.shape[0]), slice(left, left + rgba.shape[1]))
        new, old = rgba / 255.0, canvas[place]
        if blend:
            alpha = new[..., 3:] + old[..., 3:] * (1 - new[..., 3:])
            mixed = new[..., :3] * new[..., 3:] + old[..., :3] * old[..., 3:] * (1 - new[..., 3:])
            colour = np.divide(mixed, alpha, out=np.zeros_like(mixed), where=alpha > 0)
            canvas[place] = np.concatenate([colour, alpha], 2)
        else:
            canvas[place] = new
        shown.append((canvas[..., :3] * canvas[..., 3:] * 255).round().astype(np.uint8))
        if disposal == 1:
            canvas[place] = 0
        elif disposal == 2:
            canvas = before
    return shown


@pytest.mark.parametrize("alpha", [255, 128])
@pytest.mark.parametrize(("disposal", "blend"), list(itertools.product((0, 1, 2), (0, 1))))
def test_animated_png_follows_its_specification(
    tmp_path: Path, disposal: int, blend: int, alpha: int
) -> None:
    draw = np.random.default_rng(0)
    first = draw.integers(0, 256, (*SIZE, 4), dtype=np.uint8)
    first[..., 3] = 255
    frames: list[Frame] = [(0, 0, first, 0, 0)]
    for number in range(3):
        part = draw.integers(0, 256, (10, 12, 4), dtype=np.uint8)
        part[..., 3] = alpha
        frames.append((2 + 4 * number, 3 + 5 * number, part, disposal, blend))
    write_apng(tmp_path / "a.png", frames)
    pictures, _ = read(tmp_path / "a.png")
    assert len(pictures) == len(frames)
    for ours, expected in zip(pictures, composed(frames), strict=True):
        assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 2


# --- EXIF -----------------------------------------------------------------------------------------


def coloured(number: int) -> Image.Image:
    image = Image.new("RGB", (64, 48), (200, 40, 40))
    image.paste((40, 40, 200), (0, 0, 8 * number + 8, 48))
    return image


def test_frames_with_exif_are_read(tmp_path: Path) -> None:
    """Motion JPEG as cameras write it, with EXIF in each picture."""
    import io

    exif = Image.Exif()
    exif[0x10F] = "a camera"
    path = tmp_path / "e.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", 10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(4):
            data = io.BytesIO()
            coloured(number).save(data, "JPEG", quality=95, exif=exif)
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 10)
            container.mux(packet)
    pictures, _ = read(path)
    assert len(pictures) == 4
    for number, picture in enumerate(pictures):
        expected = np.asarray(coloured(number)).astype(int)
        assert np.abs(picture.astype(int) - expected).mean() < 6


def test_an_animation_is_rotated_by_its_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    pictures = [coloured(number) for number in range(3)]
    pictures[0].save(
        tmp_path / "a.webp", save_all=True, append_images=pictures[1:], exif=exif, lossless=True
    )
    for ours, given in zip(read(tmp_path / "a.webp")[0], pictures, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(given.transpose(Image.Transpose.ROTATE_270)))


# --- grey and HDR ---------------------------------------------------------------------------------


def encoded(path: Path, layout: str, pixels: NDArray[np.generic], **tags: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 10)
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], layout
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, format=layout)
            frame.pts = number
            for name, value in tags.items():
                if hasattr(frame, name):
                    setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("limited", [False, True])
def test_grey_of_limited_range_is_expanded(tmp_path: Path, limited: bool) -> None:
    levels = np.array([16, 80, 150, 235], np.uint8).repeat(16)[None].repeat(48, 0)
    path = encoded(tmp_path / "g.mkv", "gray", levels, color_range=1 if limited else 2)
    expected = (levels.astype(float) - 16) * 255 / 219 if limited else levels.astype(float)
    for picture in read(path)[0]:
        assert np.abs(picture - expected[..., None]).max() <= 1


def test_hdr_without_tone_mapping_is_noted(tmp_path: Path) -> None:
    pixels = np.full((48, 64, 3), 30000, np.uint16)
    path = encoded(tmp_path / "h.mkv", "gbrp16le", pixels, color_trc=16, color_primaries=9)
    _, notes = read(path)
    assert any("HDR" in note for note in notes)


def hdr_png(path: Path) -> None:
    """A 16-bit PNG with a chunk cICP."""
    Image.fromarray(np.full((24, 32), 40000, np.uint16)).save(path)
    data, facts = path.read_bytes(), bytes([9, 16, 0, 1])
    chunk = struct.pack(">I", 4) + b"cICP" + facts + struct.pack(">I", zlib.crc32(b"cICP" + facts))
    path.write_bytes(data[:33] + chunk + data[33:])


def test_hdr_pictures_are_noted(tmp_path: Path) -> None:
    for number in range(3):
        hdr_png(tmp_path / f"{number}.png")
    assert any("HDR" in note for note in read(tmp_path)[1])
    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(3):
        coloured(number).save(plain / f"{number}.png")
    assert not read(plain)[1]


@pytest.mark.parametrize("bits", [2, 4])
def test_the_transparent_grey_of_few_bits_is_black(tmp_path: Path, bits: int) -> None:
    """A PNG of grey samples 0, 1, 2 and 3, of which 2 is transparent."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    row = bytes([0b00011011]) if bits == 2 else bytes([0x01, 0x23])
    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", b"\0\2"), (b"IDAT", zlib.compress(b"\0" + row)))
    data = b"".join(chunk(*part) for part in (*parts, (b"IEND", b"")))
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    step = 255 // (2**bits - 1)
    assert read(tmp_path)[0][0][0, :, 0].tolist() == [0, step, 0, 3 * step]


# --- captions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["\ufe0f", "\u180b", "\u17b4\u17b5", "\u0301", "\ufeff\ufeff"])
def test_invisible_captions_are_empty(tmp_path: Path, nothing: str) -> None:
    (tmp_path / "a.txt").write_text(nothing, encoding="utf-8")
    found = find_caption(tmp_path / "a.mp4", "the prompt")
    assert found.text == "the prompt" and found.warning


def test_byte_order_marks_inside_captions_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa horse \ufeffruns", encoding="utf-8-sig")
    assert find_caption(tmp_path / "a.mp4").text == "a horse runs"
