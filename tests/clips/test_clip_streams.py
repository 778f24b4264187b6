"""Which stream of a clip is read, and how: rotation, crop, transparency, interlacing.

Every file is made here; each stands for a kind that was once read wrongly.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.samples.clip_files import numbered_frame, numbers_of, write_numbered, write_video
from lamp.clips.load import load_clips
from lamp.errors import ClipError
from tests.helpers.clip_kinds import all_numbers
from tests.helpers.clip_reading import read_frames
from tests.helpers.container_files import with_mkv_crop, with_mp4_crop

pytestmark = pytest.mark.usefixtures("no_flow")

SIZE = {"width": 64, "height": 48}
RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 40), (40, 50, 220), (230, 210, 30)


def corner_frame(width: int = 64, height: int = 48) -> np.ndarray:
    """Red above left, green above right, blue below left, yellow below right."""
    frame = np.zeros((height, width, 3), np.uint8)
    rows, columns = height // 2, width // 2
    frame[:rows, :columns], frame[:rows, columns:] = RED, GREEN
    frame[rows:, :columns], frame[rows:, columns:] = BLUE, YELLOW
    return frame


def corners_of(picture: torch.Tensor) -> list[tuple[int, int, int]]:
    """The nearest of the four colours, above left and right, below left and right."""
    names = [RED, GREEN, BLUE, YELLOW]
    colours = torch.tensor(names, dtype=torch.float)
    corners = picture[[3, 3, -4, -4], [3, -4, 3, -4]].float()
    return [names[(colours - corner).abs().sum(1).argmin()] for corner in corners]


# --- which stream ---------------------------------------------------------------------------------


def write_streams(path: Path, sizes: Sequence[tuple[int, int]], flags: Sequence[int]) -> Path:
    """Two films, of which each frame shows the number of its stream."""
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in sizes:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for stream, flag in zip(streams, flags, strict=True):
            stream.disposition = flag
        for number, stream in enumerate(streams):
            for _ in range(6):
                picture = numbered_frame(10 * (number + 1), stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize(
    ("sizes", "flags", "right"),
    [
        ([(64, 48), (128, 96)], [0, 1], 20),
        ([(128, 96), (64, 48)], [0, 1], 20),
        ([(64, 48), (128, 96)], [1, 0], 10),
        ([(64, 48), (128, 96)], [1, 1], 20),
        ([(128, 96), (64, 48)], [1, 1], 10),
    ],
)
def test_the_default_stream_is_read_then_the_largest(
    tmp_path: Path, name: str, sizes: list[tuple[int, int]], flags: list[int], right: int
) -> None:
    path = write_streams(tmp_path / name, sizes, flags)
    with av.open(str(path)) as made:
        kept = [int(getattr(s.disposition, "value", s.disposition)) & 1 for s in made.streams.video]
    if kept != flags:
        pytest.skip("this FFmpeg writes other flags")
    assert set(numbers_of(read_frames(path, range(6)))) == {right}


@pytest.mark.parametrize("name", ["a.ts", "a.avi"])
def test_without_flags_the_largest_is_read(tmp_path: Path, name: str) -> None:
    path = write_streams(tmp_path / name, [(64, 48), (128, 96)], [0, 0])
    assert set(numbers_of(read_frames(path, range(4)))) == {20}


def test_a_cover_is_not_read(tmp_path: Path) -> None:
    name = "a.mp4"
    cover = Image.fromarray(numbered_frame(25, 640, 480))
    with av.open(str(tmp_path / name), "w") as container:
        art = container.add_stream("mjpeg", rate=1)
        art.width, art.height, art.pix_fmt = cover.width, cover.height, "yuvj420p"
        art.disposition = 0x400
        film = container.add_stream("libx264", rate=10)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.array(cover), "rgb24").reformat(format="yuvj420p")
        for packet in [*art.encode(picture), *art.encode()]:
            container.mux(packet)
        for number in range(8):
            container.mux(film.encode(av.VideoFrame.from_ndarray(numbered_frame(number), "rgb24")))
        container.mux(film.encode())
    assert all_numbers(tmp_path / name) == list(range(8))


# --- rotation ------------------------------------------------------------------------------------

TURNS = {  # of the track's matrix: a, b, c, d; and the corners of the picture that is shown
    "as it is": ((1, 0, 0, 1), (RED, GREEN, BLUE, YELLOW)),
    "a quarter to the right": ((0, 1, -1, 0), (BLUE, RED, YELLOW, GREEN)),
    "half": ((-1, 0, 0, -1), (YELLOW, BLUE, GREEN, RED)),
    "a quarter to the left": ((0, -1, 1, 0), (GREEN, YELLOW, RED, BLUE)),
    "left and right": ((-1, 0, 0, 1), (GREEN, RED, YELLOW, BLUE)),
    "above and below": ((1, 0, 0, -1), (BLUE, YELLOW, RED, GREEN)),
    "transposed": ((0, 1, 1, 0), (RED, BLUE, GREEN, YELLOW)),
    "transposed the other way": ((0, -1, -1, 0), (YELLOW, GREEN, BLUE, RED)),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_rotation_and_mirroring_are_applied(tmp_path: Path, name: str, turn: str) -> None:
    (a, b, c, d), expected = TURNS[turn]
    path = write_video(tmp_path / name, [corner_frame()] * 3, pixels="yuv444p")
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    numbers = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", *numbers)
    path.write_bytes(data)
    shown = read_frames(path, [1])[0]
    assert corners_of(shown) == list(expected)
    assert shown.shape == ((64, 48, 3) if a == 0 else (48, 64, 3))


def framed(border: tuple[int, int, int, int]) -> np.ndarray:
    """The four corners with a grey frame of (left, top, right, bottom) pixels around them."""
    left, top, right, bottom = border
    picture = corner_frame()
    return np.pad(picture, ((top, bottom), (left, right), (0, 0)), constant_values=128)


@pytest.mark.parametrize("border", [(16, 8, 32, 24), (0, 0, 0, 32), (32, 0, 0, 0)])
def test_a_crop_of_matroska(tmp_path: Path, border: tuple[int, int, int, int]) -> None:
    path = write_video(tmp_path / "a.mkv", [framed(border)] * 4, codec="ffv1", pixels="bgr0")
    with_mkv_crop(path, *border)
    shown = read_frames(path, [2])[0]
    assert shown.shape == (48, 64, 3)
    assert torch.equal(shown, torch.from_numpy(corner_frame()))


@pytest.mark.parametrize("border", [(16, 8, 32, 24), (0, 0, 0, 32), (32, 0, 0, 0)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_a_crop_of_mp4(tmp_path: Path, name: str, border: tuple[int, int, int, int]) -> None:
    path = write_video(tmp_path / name, [framed(border)] * 4, codec="libx264rgb", pixels="rgb24")
    with_mp4_crop(path, *border)
    shown = read_frames(path, [2])[0]
    assert shown.shape == (48, 64, 3)
    assert corners_of(shown) == [RED, GREEN, BLUE, YELLOW]
    edges = shown.float()[[0, -1], :].mean((0, 1)) - torch.from_numpy(corner_frame()).float().mean(
        (0, 1)
    )
    assert edges.abs().max() < 40


@pytest.mark.parametrize("screen", [(112, 80), (64, 48), (128, 48), (64, 96)])
def test_a_crop_of_mp4_with_a_display_size(tmp_path: Path, screen: tuple[int, int]) -> None:
    """The size is that of what is left, 64 x 48 pixels, unless it is that of the whole picture."""
    border = (16, 8, 32, 24)
    path = write_video(tmp_path / "a.mov", [framed(border)] * 4, codec="libx264rgb", pixels="rgb24")
    with_mp4_crop(path, *border, screen=screen)
    shown = read_frames(path, [2])[0]
    wide = 64 if screen == (112, 80) else round(screen[0] / screen[1] * 48)
    assert shown.shape == (48, wide, 3)
    assert corners_of(shown) == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("border", [(112, 0, 0, 0), (0, 0, 0, 80)])
def test_an_empty_crop_of_mp4_is_ignored(tmp_path: Path, border: tuple[int, int, int, int]) -> None:
    frames = [framed((16, 8, 32, 24))] * 4
    path = write_video(tmp_path / "a.mov", frames, codec="libx264rgb", pixels="rgb24")
    with_mp4_crop(path, *border, screen=(112, 64))
    with contextlib.suppress(ClipError):  # older FFmpeg refuses the file itself
        assert min(read_frames(path, [2])[0].shape[:2]) > 40


def test_a_crop_of_matroska_with_a_display_size(tmp_path: Path) -> None:
    """The size is that of what is left: 64 x 48 pixels that are shown as 96 x 48."""
    path = write_video(
        tmp_path / "a.mkv", [framed((16, 8, 32, 24))] * 4, codec="ffv1", pixels="bgr0"
    )
    with_mkv_crop(path, 16, 8, 32, 24, screen=(96, 48))
    shown = read_frames(path, [2])[0]
    assert shown.shape == (48, 96, 3)
    assert corners_of(shown) == [RED, GREEN, BLUE, YELLOW]


def test_transparency_of_a_palette(tmp_path: Path) -> None:
    picture = Image.new("P", (64, 48), 0)
    picture.putpalette([200, 30, 30, 30, 200, 40, 0, 0, 0])
    picture.paste(1, (32, 0, 64, 48))
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(4):
        picture.save(frames / f"{number}.png", transparency=0)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for number in range(4):
            packet = av.Packet((frames / f"{number}.png").read_bytes())
            packet.stream, packet.is_keyframe = stream, True
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, 10)
            container.mux(packet)
    as_pictures, as_film = read_frames(frames, [1])[0], read_frames(tmp_path / "a.mov", [1])[0]
    assert torch.equal(as_film, as_pictures)
    assert as_film[:, :32].max() == 0
    assert as_film[0, -1].tolist() == [30, 200, 40]


# --- interlaced -----------------------------------------------------------------------------------


def combs(picture: torch.Tensor) -> float:
    """How much each line differs from the mean of its neighbours."""
    grey = picture.float().mean(-1)
    return (2 * grey[1:-1] - grey[:-2] - grey[2:]).abs().mean().item()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"x264-params": "interlaced=1:tff=1:crf=4"}),
        ("a.mpg", "mpeg2video", {"flags": "+ilme+ildct", "q": "2"}),
    ],
)
def test_interlaced_frames_are_deinterlaced_with_a_note(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.bit_rate = 8_000_000
        for number in range(12):
            fields = [np.full((96, 128, 3), 40, np.uint8) for _ in range(2)]
            for place, field in enumerate(fields):
                at = 8 * (2 * number + place)
                field[:, at % 128 : at % 128 + 24] = 220
            fields[0][1::2] = fields[1][1::2]
            frame = av.VideoFrame.from_ndarray(fields[0], "rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(tmp_path / name)) as made:
        raw = [f for f in made.decode(video=0)]
    assert any(frame.interlaced_frame for frame in raw)
    before = combs(torch.from_numpy(raw[5].to_ndarray(format="rgb24")))
    clips = load_clips([tmp_path / name], "", 4, width=128, height=96)
    assert clips.length(0) == len(raw)
    assert combs(clips.frames(0, [5])[0]) < before / 4
    (warning,) = [text for text in clips.warnings if "interlaced" in text]
    assert name in warning


def test_progressive_frames_stay_unchanged(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", 8)
    assert not load_clips([path], "", 4, **SIZE).warnings[1:]
    assert not [text for text in load_clips([path], "", 4, **SIZE).warnings if "interl" in text]
