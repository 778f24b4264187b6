"""Which frames a clip has, and whether its file is complete.

Every file is made here; each stands for a kind that was once read wrongly.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from benchmarks.samples.clip_files import numbered_frame, write_numbered, write_video
from lamp.clips.load import load_clips
from lamp.errors import ClipError
from tests.helpers.clip_kinds import CONTAINERS, all_numbers, sampled, write_kind
from tests.helpers.clip_reading import probe
from tests.helpers.container_files import write_avi

pytestmark = [
    pytest.mark.usefixtures("no_flow"),
    pytest.mark.slow,  # many of them
]

SIZE = {"width": 64, "height": 48}


def test_null_frames_of_avi_repeat_the_picture(tmp_path: Path) -> None:
    for every in (2, 3):
        path = write_avi(tmp_path / "a.avi", [n if n % every == 0 else None for n in range(24)])
        shown = [n for n in range(24) if n % every == 0]
        assert all_numbers(path) == shown
        times = [n / 10 for n in shown]
        assert all_numbers(path, 10) == [shown[n] for n in sampled(times, 10)]
        assert probe(path).fps == pytest.approx(10 / every, rel=1e-4)


@pytest.mark.parametrize("empty", [[5], [3, 4, 9], [11]])
def test_empty_samples_of_mp4_repeat_the_picture(tmp_path: Path, empty: list[int]) -> None:
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


def test_hidden_frames_do_not_count(tmp_path: Path) -> None:
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
def test_data_after_the_end_of_a_gif_is_ignored(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    data = gif_bytes(tmp_path)
    (tmp_path / "a.gif").write_bytes(change(data))
    assert probe(tmp_path / "a.gif").frames == 12
    assert load_clips([tmp_path / "a.gif"], "", 4, **SIZE).length(0) == 12


@pytest.mark.parametrize("cut", [1, 5, 33])
def test_a_truncated_gif_is_named(tmp_path: Path, cut: int) -> None:
    data = gif_bytes(tmp_path)
    (tmp_path / "a.gif").write_bytes(data[: -2 - cut])
    with pytest.raises(ClipError, match="'a.gif'"):
        probe(tmp_path / "a.gif")


CUT = {
    "a.mp4": {"movflags": "faststart"}, "a.mov": {"movflags": "faststart"}, "a.mkv": {},
    "a.webm": {"codec": "libvpx-vp9"}, "a.avi": {"codec": "mpeg4"}, "a.wmv": {"codec": "wmv2"},
    "a.flv": {"codec": "libx264"}, "a.ogv": {"codec": "libvpx"}, "a.m4v": {"movflags":
    "frag_keyframe+empty_moov"},
}  # fmt: skip


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("name", CUT)
def test_a_truncated_file_is_named(tmp_path: Path, name: str, share: float) -> None:
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
def test_bytes_after_the_end_are_ignored(tmp_path: Path, name: str) -> None:
    path = write_kind(tmp_path / name, 12)
    with path.open("ab") as file:
        file.write(bytes(5))
    assert probe(path).frames == 12
    with path.open("ab") as file:
        file.write(bytes(500))
    assert probe(path).frames == 12


@pytest.mark.parametrize("name", ["a.png", "a.apng", "a.webp", "a.avif"])
def test_an_animated_picture_is_complete_or_named(tmp_path: Path, name: str) -> None:
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


def test_the_default_image_of_an_apng_is_skipped(tmp_path: Path) -> None:
    pictures = [Image.fromarray(numbered_frame(number)) for number in (30, 0, 1, 2, 3)]
    pictures[0].save(
        tmp_path / "a.png", save_all=True, append_images=pictures[1:], default_image=True,
        duration=100,
    )  # fmt: skip
    assert all_numbers(tmp_path / "a.png") == [0, 1, 2, 3]
