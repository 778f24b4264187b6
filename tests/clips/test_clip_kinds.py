"""Clips as people have them: which stream, which way up, which times, and which files are whole.

Every file is made here; each stands for a kind that was read wrongly once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.samples.clip_files import numbered_frame, numbers_of, write_numbered, write_video
from lamp.clips.load import load_clips
from lamp.clips.video import probe, read_frames
from lamp.errors import ClipError
from tests.helpers.container_files import with_mkv_crop, with_mp4_crop, write_avi

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


def all_numbers(path: Path, fps: float | None = None) -> list[int]:
    """The numbers of all frames that are learned from."""
    clips = load_clips([path], "", 2, fps=fps, **SIZE)
    return numbers_of(torch.cat(list(clips.chunks(0))))


def sampled(times: Sequence[float], fps: float, hold: float | None = None) -> list[int]:
    """The plain formula: at each time 0, 1/fps, ... the frame that is nearest, of two the first."""
    shown = np.array(times) - times[0]
    end = shown[-1] + max(hold or 0.0, shown[-1] - shown[-2])
    targets = np.arange(0, end - 1e-6, 1 / fps)
    return np.abs(targets[:, None] - shown).round(6).argmin(1).tolist()


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


def test_a_cover_is_no_film(tmp_path: Path) -> None:
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


# --- which way up ---------------------------------------------------------------------------------

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
def test_turned_and_mirrored_as_the_file_says(tmp_path: Path, name: str, turn: str) -> None:
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


def test_a_crop_of_matroska_with_a_size_on_the_screen(tmp_path: Path) -> None:
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
def test_interlaced_frames_have_no_combs_and_are_told_of(
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


def test_frames_that_are_not_interlaced_are_left_alone(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", 8)
    assert not load_clips([path], "", 4, **SIZE).warnings[1:]
    assert not [text for text in load_clips([path], "", 4, **SIZE).warnings if "interl" in text]


# --- times ----------------------------------------------------------------------------------------

CONTAINERS = {
    "a.mp4": {}, "a.mov": {}, "a.mkv": {}, "a.flv": {"codec": "libx264"}, "a.ts": {}, "a.3gp": {},
    "a.m2ts": {}, "a.wmv": {"codec": "wmv2"}, "a.avi": {}, "b.avi": {"codec": "mpeg4"},
    "a.webm": {"codec": "libvpx-vp9"}, "b.webm": {"codec": "libvpx"}, "a.gif":
    {"codec": "gif", "pixels": "rgb8"}, "a.ogv": {"codec": "libvpx"}, "a.qt": {"format": "mov"},
    "b.mkv": {"codec": "libx265"}, "a.mpg": {"codec": "mpeg2video", "rate": 25},
}  # fmt: skip


def write_kind(path: Path, count: int, **changes: object) -> Path:
    how = {**CONTAINERS[path.name], **changes}
    kind = how.pop("format", None)
    if kind:
        made = write_numbered(path.with_suffix(f".{kind}"), count, **how)
        return made.rename(path)
    return write_numbered(path, count, **how)


@pytest.mark.parametrize("fps", [None, 7.3, 10.0])
@pytest.mark.parametrize("name", CONTAINERS)
def test_frames_at_a_rate_are_those_that_the_times_say(
    tmp_path: Path, name: str, fps: float | None
) -> None:
    count = 24
    rate = CONTAINERS[name].get("rate", 10)
    path = write_kind(tmp_path / name, count)
    info = probe(path)
    assert (info.frames, info.fps) == (count, pytest.approx(rate, rel=1e-3))
    expected = sampled([number / rate for number in range(count)], fps) if fps else range(count)
    off = np.abs(np.array(all_numbers(path, fps)) - list(expected))
    assert off.max() <= (2 if name.endswith("gif") else 0)  # its palette has few greys


@pytest.mark.parametrize("fps", [5.0, 12.5])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.webm", "a.gif"])
def test_uneven_times(tmp_path: Path, name: str, fps: float) -> None:
    times = [0, 5, 10, 15, 20, 60, 100, 140, 144, 150]
    path = write_kind(tmp_path / name, len(times), times=times)
    got = np.array(all_numbers(path, fps))
    expected = sampled([time / 100 for time in times], fps)
    assert np.abs(got - expected).max() <= (2 if name.endswith("gif") else 0)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("bframes", [1, 3])
def test_avi_with_frames_out_of_order(tmp_path: Path, codec: str, bframes: int) -> None:
    """It stores no times at all, only an order."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"bf": str(bframes)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(31):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert all_numbers(path) == list(range(31))
    assert all_numbers(path, 5) == list(range(0, 31, 2))
    assert probe(path).fps == pytest.approx(10)


@pytest.mark.parametrize(
    ("ending", "codec", "rate", "bframes"),
    [
        ("ts", "libx264", 10, 3), ("ts", "libx264", 10, 0), ("m2ts", "libx264", 10, 3),
        ("ts", "mpeg2video", 25, 2), ("mpg", "mpeg2video", 25, 0), ("mpg", "mpeg2video", 25, 2),
        ("mkv", "libx264", 10, 3), ("webm", "libvpx", 10, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [7, 16])
def test_joined_streams_whose_clock_starts_over(
    tmp_path: Path, ending: str, codec: str, rate: int, bframes: int, length: int
) -> None:
    """As `cat` and recorders make them."""
    parts = 2 if ending in ("mkv", "webm") else 3
    data, shown = b"", [number % 30 for number in range(length * parts)]
    for part in range(parts):
        with av.open(str(tmp_path / f"part.{ending}"), "w") as container:
            options = {} if codec == "libvpx" else {"bf": str(bframes)}
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.bit_rate = 4_000_000
            for number in shown[length * part : length * (part + 1)]:
                frame = av.VideoFrame.from_ndarray(numbered_frame(number), "rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        data += (tmp_path / f"part.{ending}").read_bytes()
    path = tmp_path / f"a.{ending}"
    path.write_bytes(data)
    clips = load_clips([path], "", 4, **SIZE)
    assert all_numbers(path) == shown
    assert all_numbers(path, rate) == shown
    assert all_numbers(path, rate / 2) == shown[::2]
    assert probe(path).fps == pytest.approx(rate, rel=1e-3)
    assert any("clock" in text and path.name in text for text in clips.warnings)


@pytest.mark.parametrize(("name", "parts"), [("a.mp4", 2), ("a.flv", 2), ("a.mkv", 3)])
def test_a_film_that_ffmpeg_does_not_read_is_told_of(tmp_path: Path, name: str, parts: int) -> None:
    path = write_kind(tmp_path / name, 8)
    whole = path.read_bytes()
    told = load_clips([path], "", 4, **SIZE).warnings
    path.write_bytes(whole * parts)
    try:
        more = set(load_clips([path], "", 4, **SIZE).warnings) - set(told)
    except ClipError as error:  # of some of them it refuses the whole
        more = {str(error)}
    assert any(name in text for text in more)


def test_a_clock_that_leaps_ahead(tmp_path: Path) -> None:
    """The second part was recorded an hour later."""
    first = write_numbered(tmp_path / "first.ts", 8).read_bytes()
    frames = [numbered_frame(8 + number) for number in range(8)]
    with av.open(str(tmp_path / "second.ts"), "w", options={"output_ts_offset": "3600"}) as made:
        stream = made.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    path = tmp_path / "a.ts"
    path.write_bytes(first + (tmp_path / "second.ts").read_bytes())
    assert all_numbers(path, 10) == list(range(16))


@pytest.mark.parametrize("rate", [1000, 90_000])
@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_the_rate_is_that_of_the_times_and_not_of_the_header(
    tmp_path: Path, name: str, rate: int
) -> None:
    """As browsers and screen recorders write it: a tick of the clock is no rate."""
    jitter = np.random.default_rng(0).integers(-6, 7, 30)
    times = [33 * number + int(jitter[number]) for number in range(30)]
    times[0] = 0
    codec = "libvpx" if name == "a.webm" else "libx264"
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    info = probe(tmp_path / name)
    assert info.frames == 30
    assert info.fps == pytest.approx(29 / (times[-1] / 1000), rel=0.02)


def test_a_rate_that_the_times_bear_out_is_exact(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", 30, rate=Fraction(30_000, 1001))
    assert probe(path).fps == 30_000 / 1001  # the times are whole milliseconds


@pytest.mark.parametrize("held", [0.5, 2.0])
def test_a_last_picture_that_is_held(tmp_path: Path, held: float) -> None:
    pictures = [Image.fromarray(numbered_frame(number)) for number in range(6)]
    lengths = [100] * 5 + [int(1000 * held)]
    for name, how in (("a.webp", {"lossless": True}), ("a.gif", {"loop": 0}), ("a.png", {})):
        pictures[0].save(
            tmp_path / name, save_all=True, append_images=pictures[1:], duration=lengths, **how
        )
        assert all_numbers(tmp_path / name) == list(range(6))
        expected = sampled([number / 10 for number in range(6)], 10, hold=held)
        got = np.array(all_numbers(tmp_path / name, 10))
        assert np.abs(got - expected).max() <= 0, name


# --- whole or not ---------------------------------------------------------------------------------


def test_null_frames_of_avi_hold_the_picture(tmp_path: Path) -> None:
    for every in (2, 3):
        path = write_avi(tmp_path / "a.avi", [n if n % every == 0 else None for n in range(24)])
        shown = [n for n in range(24) if n % every == 0]
        assert all_numbers(path) == shown
        times = [n / 10 for n in shown]
        assert all_numbers(path, 10) == [shown[n] for n in sampled(times, 10)]
        assert probe(path).fps == pytest.approx(10 / every, rel=1e-4)


@pytest.mark.parametrize("empty", [[5], [3, 4, 9], [11]])
def test_empty_samples_of_mp4_hold_the_picture(tmp_path: Path, empty: list[int]) -> None:
    path = write_numbered(tmp_path / "a.mp4", 12, codec="mpeg4", intra=True)
    data = bytearray(path.read_bytes())
    place = data.index(b"stsz") + 4
    assert struct.unpack(">III", data[place : place + 12]) == (0, 0, 12)
    sizes = list(struct.unpack(">12I", data[place + 12 : place + 60]))
    for number in empty:  # the bytes stay where they are, behind those of the frame before
        before = max(n for n in range(number) if n not in empty)
        sizes[before], sizes[number] = sizes[before] + sizes[number], 0
    data[place + 12 : place + 60] = struct.pack(">12I", *sizes)
    path.write_bytes(data)
    shown = [number for number in range(12) if number not in empty]
    assert all_numbers(path) == shown
    expected = sampled([number / 10 for number in shown], 10)
    assert all_numbers(path, 10) == [shown[number] for number in expected]


def test_hidden_frames_are_no_frames(tmp_path: Path) -> None:
    """Of VP8: pictures that others are made from and that are never shown."""
    source = write_numbered(tmp_path / "source.webm", 24, codec="libvpx", intra=True)
    with av.open(str(source)) as made:
        packets = [bytes(packet) for packet in made.demux(video=0) if packet.size]
    with av.open(str(tmp_path / "a.webm"), "w") as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, data in enumerate(packets):
            hidden = bytes([data[0] & ~0x10]) + data[1:]  # without its bit for being shown
            for content in [hidden, data] if number % 5 == 2 else [data]:
                packet = av.Packet(content)
                packet.stream, packet.is_keyframe = stream, True
                packet.pts = packet.dts = number
                packet.time_base = Fraction(1, 10)
                container.mux(packet)
    with av.open(str(tmp_path / "a.webm")) as made:
        assert sum(1 for packet in made.demux(video=0) if packet.size) == 29
    info = probe(tmp_path / "a.webm")
    assert (info.frames, info.fps) == (24, 10)
    assert all_numbers(tmp_path / "a.webm") == list(range(24))
    assert all_numbers(tmp_path / "a.webm", 5) == list(range(0, 24, 2))


def gif_bytes(folder: Path, count: int = 12) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in noise]
    path = folder / "whole.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, loop=0)
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data.ljust(len(data) // 4096 * 4096 + 4096, b"\0"),
        lambda data: data + bytes(100_000),
        lambda data: data + b"Made with something" * 3,
        lambda data: data + b"\r\n",
        lambda data: data + data,
        lambda data: data + b",;!;" * 20,
        lambda data: data + data[800:4000],
    ],
)
def test_a_gif_is_whole_whatever_lies_behind_its_end(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    data = gif_bytes(tmp_path)
    (tmp_path / "a.gif").write_bytes(change(data))
    assert probe(tmp_path / "a.gif").frames == 12
    assert load_clips([tmp_path / "a.gif"], "", 4, **SIZE).length(0) == 12


@pytest.mark.parametrize("cut", [1, 5, 33])
def test_a_gif_that_is_cut_gets_its_sentence(tmp_path: Path, cut: int) -> None:
    data = gif_bytes(tmp_path)
    (tmp_path / "a.gif").write_bytes(data[: -2 - cut])
    with pytest.raises(ClipError, match="'a.gif' is incomplete"):
        probe(tmp_path / "a.gif")


CUT = {
    "a.mp4": {"movflags": "faststart"}, "a.mov": {"movflags": "faststart"}, "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9"}, "a.avi": {"codec": "mpeg4"}, "a.wmv": {"codec": "wmv2"},
    "a.flv": {"codec": "libx264"}, "a.ogv": {"codec": "libvpx"}, "a.m4v": {"movflags":
    "frag_keyframe+empty_moov"},
}  # fmt: skip


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_gets_its_sentence(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    how = dict(CUT[name])
    target = tmp_path / name
    if name == "a.m4v":  # the muxer of that name writes raw streams
        write_video(tmp_path / "b.mp4", list(noise), intra=True, **how).rename(target)
    else:
        write_video(target, list(noise), **how)
    assert probe(target).frames == 30
    data = target.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ClipError, match=f"'{name}'"):
        probe(target)
    with pytest.raises(ClipError, match=f"'{name}'"):
        load_clips([target], "", 4, **SIZE)


@pytest.mark.parametrize(
    "name", [name for name in CONTAINERS if name not in ("a.ts", "a.m2ts", "a.mpg")]
)
def test_some_bytes_behind_the_end_do_no_harm(tmp_path: Path, name: str) -> None:
    path = write_kind(tmp_path / name, 12)
    with path.open("ab") as file:
        file.write(bytes(5))
    assert probe(path).frames == 12
    with path.open("ab") as file:
        file.write(bytes(500))
    assert probe(path).frames == 12


@pytest.mark.parametrize("name", ["a.png", "a.apng", "a.webp", "a.avif"])
def test_an_animated_picture_is_a_clip_and_is_whole_or_named(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    pictures = [Image.fromarray(picture) for picture in noise]
    kind = {"a.png": "PNG", "a.apng": "PNG", "a.webp": "WEBP", "a.avif": "AVIF"}[name]
    try:
        pictures[0].save(tmp_path / name, kind, save_all=True, append_images=pictures[1:])
    except KeyError:
        pytest.skip(f"this Pillow writes no {kind}")
    clips = load_clips(tmp_path, "", 4, **SIZE)
    assert [info.name for info in clips.infos] == [name] and clips.length(0) == 8
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(ClipError, match=f"'{name}'"):
        load_clips([tmp_path / name], "", 4, **SIZE)


def test_a_png_for_those_who_know_no_animations_is_passed_by(tmp_path: Path) -> None:
    pictures = [Image.fromarray(numbered_frame(number)) for number in (30, 0, 1, 2, 3)]
    pictures[0].save(
        tmp_path / "a.png", save_all=True, append_images=pictures[1:], default_image=True,
        duration=100,
    )  # fmt: skip
    assert all_numbers(tmp_path / "a.png") == [0, 1, 2, 3]
