"""Parts of films, between trim marks in seconds: exactly the frames that are shown there."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from benchmarks.samples.clip_files import numbered_frame, numbers_of, write_numbered, write_video
from lamp.clips.clip_set import ClipSet
from lamp.clips.decoding.choose import source_frames
from lamp.clips.load import clips_from_sources
from lamp.clips.settings import ClipSettings
from lamp.clips.sources import FileSource
from lamp.errors import ClipError

pytestmark = [
    pytest.mark.usefixtures("no_flow"),
    pytest.mark.slow,  # many of them
]


def part_of(path: Path, start: float, end: float | None, **settings: object) -> ClipSet:
    source = FileSource(path, start, end)
    return clips_from_sources([source], "x", ClipSettings(4, 64, 48, **settings))


@pytest.mark.parametrize(("start", "end", "numbers"), [
    (0.0, 1.0, range(0, 10)),
    (1.2, None, range(12, 30)),
    (0.75, 1.75, range(8, 18)),
    (0.5, 99.0, range(5, 30)),
])  # fmt: skip
def test_a_part_of_a_film(tmp_path, start, end, numbers):
    path = write_numbered(tmp_path / "film.mp4", 30)
    clips = part_of(path, start, end)
    assert numbers_of(torch.cat(list(clips.chunks(0)))) == list(numbers)
    assert clips.infos[0].frames == len(numbers)


def test_frames_before_a_part_are_not_decoded(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "film.mp4", noise, codec="mpeg4", intra=True)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + len(data) // 4] = bytes(len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(ClipError, match="'film.mp4'"):
        part_of(path, 0.0, None)
    assert part_of(path, 3.0, None).length(0) == 10


def test_a_part_outside_the_film(tmp_path):
    path = write_numbered(tmp_path / "film.mp4", 5)
    with pytest.raises(ClipError, match="'film.mp4'"):
        part_of(path, 3.0, 4.0)


def numbers_between(path: Path, start: float, end: float | None = None) -> list[int]:
    with contextlib.closing(source_frames(path, start, end)) as frames:
        return numbers_of(torch.stack([frame.load() for frame in frames]))


CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "flv": "flv1"}


@pytest.mark.parametrize("rate", [24, 25, 30])
@pytest.mark.parametrize("kind", CODECS)
def test_marks_at_frames_are_exact(tmp_path: Path, kind: str, rate: int) -> None:
    """Whether the container rounds times to milliseconds, or the division to a double."""
    path = write_numbered(tmp_path / f"a.{kind}", 30, codec=CODECS[kind], rate=rate)
    for first in (0, 1, 5, 6, 7, 10, 13):
        found = numbers_between(path, first / rate, first / rate + 16 / rate)
        assert found == list(range(first, first + 16))


def write_stored(path: Path, codec: str, codec_options: dict[str, str], **options: str) -> Path:
    """30 numbered frames at 10 per second, of a codec that is told how to store them."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=10, options=codec_options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 4_000_000
        for number in range(30):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number, 64, 48), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


STORED = {
    "fragments.mp4": ("libx264", {"g": "10"}, {"movflags": "frag_keyframe+empty_moov"}),
    "open.mp4": ("libx264", {"g": "10", "x264-params": "open-gop=1:bframes=3"}, {}),
    "open.mov": ("libx265", {"x265-params": "keyint=10:log-level=none"}, {}),
    "mpeg4.mp4": ("mpeg4", {"g": "10", "bf": "2"}, {}),
    "h264.avi": ("libx264", {"g": "10", "bf": "0"}, {}),
    "h264.mkv": ("libx264", {"g": "10", "bf": "3"}, {}),
}


@pytest.mark.parametrize("name", STORED)
def test_a_part_may_begin_anywhere(tmp_path: Path, name: str) -> None:
    """Compared with the whole film, which is read without a jump."""
    codec, codec_options, options = STORED[name]
    try:
        path = write_stored(tmp_path / name, codec, codec_options, **options)
    except av.FFmpegError as error:
        pytest.skip(f"this FFmpeg does not write it: {error}")
    with contextlib.closing(source_frames(path)) as frames:
        whole = [(frame.time, numbers_of(frame.load()[None])[0]) for frame in frames]
    for tenth in range(28):
        start = tenth / 10 + 0.04
        expected = [n for time, n in whole if time is not None and time >= start]
        assert not expected or numbers_between(path, start) == expected, start


def test_a_part_may_begin_anywhere_in_a_film_of_an_uneven_rate(tmp_path: Path) -> None:
    """Frames that are stored before the keyframe that they are shown after, and lie far from it."""
    times, now = [], 0
    for number in range(60):
        times.append(now)
        now += 100 if 20 <= number < 26 else 2
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stored = {"x264-params": "open-gop=1:bframes=3:keyint=8:min-keyint=8:scenecut=0"}
        stream = container.add_stream("libx264", rate=100, options=stored)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, time in enumerate(times):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number % 30, 64, 48), "rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 100)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with contextlib.closing(source_frames(path)) as frames:
        whole = [(frame.time or 0.0, numbers_of(frame.load()[None])[0]) for frame in frames]
    for start, _ in whole[1:-1:3]:
        expected = [number for time, number in whole if time >= start - 1e-3]
        assert numbers_between(path, start) == expected, start


def test_sound_that_begins_earlier_moves_no_mark(tmp_path: Path) -> None:
    """By the delay of its codec, which some versions of FFmpeg count as the file's start."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=60)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        for number in range(30):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number, 64, 48), "rgb24")
            container.mux(film.encode(picture))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 24_000), np.float32), "fltp", "mono")
        silence.sample_rate = 48_000
        container.mux(sound.encode(silence))
        for stream in (film, sound):
            container.mux(stream.encode())
    for first in (0, 12):
        found = numbers_between(path, first / 60, (first + 12) / 60)
        assert found == list(range(first, first + 12))


@pytest.mark.parametrize("kind", ["ts", "mkv"])
def test_marks_count_from_the_start_of_a_recording(tmp_path: Path, kind: str) -> None:
    """The clock of a recorder runs on: this film begins an hour after it was switched on."""
    times = [360_000 + 10 * number for number in range(30)]
    path = write_numbered(tmp_path / f"a.{kind}", 30, codec="mpeg4", times=times)
    assert numbers_between(path, 0.5, 1.5) == list(range(5, 15))
    assert numbers_between(path, 0.0, 1.0) == list(range(10))


def test_a_mark_within_a_pause_ends_the_last_picture(tmp_path: Path) -> None:
    """As in the recording of a screen, where nothing is stored while nothing moves."""
    times = [*range(0, 100, 10), *range(600, 700, 10)]
    path = write_numbered(tmp_path / "a.mp4", 20, times=times)
    clips = part_of(path, 0.0, 1.5, fps=10.0)
    assert numbers_of(torch.cat(list(clips.chunks(0)))) == [*range(9), *[9] * 6]
