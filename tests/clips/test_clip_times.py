"""When the frames of a clip are displayed, and at which rate.

Every file is made here; each stands for a kind that was once read wrongly.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.samples.clip_files import numbered_frame, write_numbered
from lamp.clips.decoding.pictures import knows_avif
from lamp.clips.load import load_clips
from lamp.errors import ClipError
from tests.helpers.clip_kinds import CONTAINERS, all_numbers, sampled, write_kind
from tests.helpers.clip_reading import probe

pytestmark = [
    pytest.mark.usefixtures("no_flow"),
    pytest.mark.slow,  # many of them
]

SIZE = {"width": 64, "height": 48}


@pytest.mark.parametrize("fps", [None, 7.3, 10.0])
@pytest.mark.parametrize("name", CONTAINERS)
def test_resampled_frames_follow_the_timestamps(
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
def test_joined_streams_whose_clock_restarts(
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
    assert any("timestamps" in text and path.name in text for text in clips.warnings)


@pytest.mark.parametrize(("name", "parts"), [("a.mp4", 2), ("a.flv", 2), ("a.mkv", 3)])
def test_a_film_that_ffmpeg_skips_is_noted(tmp_path: Path, name: str, parts: int) -> None:
    path = write_kind(tmp_path / name, 8)
    whole = path.read_bytes()
    told = load_clips([path], "", 4, **SIZE).warnings
    path.write_bytes(whole * parts)
    try:
        more = set(load_clips([path], "", 4, **SIZE).warnings) - set(told)
    except ClipError as error:  # of some of them it refuses the whole
        more = {str(error)}
    assert any(name in text for text in more)


def test_a_clock_that_jumps_ahead(tmp_path: Path) -> None:
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
def test_the_rate_follows_the_timestamps_not_the_header(
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


def test_a_header_rate_that_the_timestamps_confirm_is_used(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mkv", 30, rate=Fraction(30_000, 1001))
    assert probe(path).fps == 30_000 / 1001  # the times are whole milliseconds


@pytest.mark.parametrize("held", [0.5, 2.0])
def test_a_long_last_frame(tmp_path: Path, held: float) -> None:
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


@pytest.mark.parametrize("rate", [24, 60, 240])
def test_the_rate_of_an_avif_is_not_rounded_to_milliseconds(tmp_path: Path, rate: int) -> None:
    if not knows_avif():
        pytest.skip("this Pillow writes no AVIF")
    pictures = [Image.fromarray(numbered_frame(number, 64, 48)) for number in range(30)]
    path = tmp_path / "a.avif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1)
    data = bytearray(path.read_bytes())
    head = data.index(b"mdhd") + 4
    ticks = head + (20 if data[head] else 12)  # per second; each frame has one
    data[ticks : ticks + 4] = rate.to_bytes(4, "big")
    path.write_bytes(data)
    assert probe(path).fps == pytest.approx(rate, rel=0.005)
    assert len(all_numbers(path, float(rate))) == 30
