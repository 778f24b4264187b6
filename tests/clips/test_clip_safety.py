"""Untrusted clips: odd files, false claims of size, links, folders that change while read."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.samples.clip_files import numbered_frame, numbers_of, write_numbered, write_video
from lamp.cli import DONE, main
from lamp.clips.decoding.reader import MAX_PIXELS
from lamp.clips.load import load_clips
from lamp.clips.report import describe_clips
from lamp.errors import ClipError
from tests.helpers.clip_reading import list_clips, probe, read_frames

SIZE = {"width": 64, "height": 48}


# --- what a header claims ---------------------------------------------------------------------


def claim_png(path: Path, width: int, height: int) -> None:
    """A valid PNG of a few hundred bytes, all black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
                     + chunk(b"IEND", b""))  # fmt: skip


def claim_gif(path: Path, width: int, height: int) -> None:
    """A small GIF that claims to be large."""
    data = bytearray(write_numbered(path, 3, codec="gif", pixels="rgb8").read_bytes())
    data[6:10] = struct.pack("<HH", width, height)
    path.write_bytes(data)


def claim_mp4(path: Path, width: int, height: int) -> None:
    """The size in the container; the stream has another."""
    data = bytearray(write_numbered(path, 3).read_bytes())
    track, sample = data.index(b"tkhd"), data.index(b"avc1", data.index(b"stsd"))
    data[track + 80 : track + 88] = struct.pack(">II", width << 16, height << 16)
    data[sample + 28 : sample + 32] = struct.pack(">HH", width, height)
    path.write_bytes(data)


def test_a_container_with_a_false_size_is_read_at_its_real_size(tmp_path: Path) -> None:
    path = tmp_path / "8k.mp4"
    claim_mp4(path, 7680, 4320)
    assert read_frames(path, range(3), **SIZE).shape == (3, 48, 64, 3)
    assert numbers_of(read_frames(path, range(3))) == [0, 1, 2]


@pytest.mark.slow
def test_a_picture_of_8k_is_read(tmp_path: Path) -> None:
    claim_png(tmp_path / "1.png", 7680, 4320)
    assert read_frames(tmp_path, [0], **SIZE).shape == (1, 48, 64, 3)


@pytest.mark.parametrize("size", [(16_000, 16_000), (65_535, 65_535), (8192, 8193)])
@pytest.mark.parametrize("ending", ["gif", "png"])
def test_an_absurd_size_is_refused_before_memory_is_allocated(
    tmp_path: Path, ending: str, size: tuple[int, int]
) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    folder = tmp_path / "clip"
    folder.mkdir()
    if ending == "gif":
        path = tmp_path / "large.gif"
        claim_gif(path, *size)
    else:
        path = folder
        claim_png(folder / "1.png", size[0], 8 if size[0] == 65_535 else size[1])
        if size[0] == 65_535:
            data = bytearray((folder / "1.png").read_bytes())
            data[20:24] = struct.pack(">I", size[1])
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
            (folder / "1.png").write_bytes(data)
    with pytest.raises(ClipError, match="cannot be read"):
        read_frames(path, [0])


# --- strange files ------------------------------------------------------------------------------


def test_content_counts_not_the_extension(tmp_path: Path) -> None:
    film = write_numbered(tmp_path / "film.mkv", 4)
    assert numbers_of(read_frames(film.rename(tmp_path / "film.mp4"), range(4))) == [0, 1, 2, 3]
    picture = tmp_path / "photo.mp4"
    Image.fromarray(numbered_frame(5)).save(picture, "JPEG")
    text = tmp_path / "playlist.mp4"
    # A list of other files is not followed: neither on the disk nor over the network.
    secret = write_numbered(tmp_path / "secret.mp4", 2)
    for content in (
        f"ffconcat version 1.0\nfile '{secret}'\n",
        f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    ):
        text.write_text(content)
        with pytest.raises(ClipError, match="'playlist.mp4'"):
            read_frames(text, [0])


def test_a_clip_of_one_frame_is_too_short_but_readable(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "one.mp4", 1)
    assert probe(path).frames == 1
    with pytest.raises(ClipError, match="'one.mp4' has 1 frame"):
        load_clips([path], "", 4, **SIZE)
    assert (
        numbers_of(load_clips([path], "", 4, short="loop", **SIZE).frames(0, range(4))) == [0] * 4
    )


@pytest.mark.parametrize(
    "name",
    [
        "\U0001f40e runs",
        "骑马",
        "it's “so”",
        '"',
        "-rf",
        "%s%n",
        "a\nb",
        "{0}",
        "c:stream",
        "$HOME",
    ],
)
def test_clips_of_any_name_are_read_and_reported(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path = write_numbered(tmp_path / "plain.mp4", 4).rename(folder / f"{name}.mp4")
    path.with_suffix(".txt").write_text("told {motion}", encoding="utf-8")
    clips = load_clips(folder, "", 4, **SIZE)
    assert clips.captions == [f"told {' '.join(name.split())}"]
    told = name.replace("\n", "\\n")  # a name does not begin another line
    assert f"{told}.mp4: 64 x 48" in describe_clips(clips)
    assert numbers_of(clips.frames(0, range(4))) == [0, 1, 2, 3]


def test_names_with_bytes_outside_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from old archives: text encoders and some terminals cannot process them."""
    folder = tmp_path / os.fsdecode(b"horse\xff run")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("names are always text here")
    path = write_numbered(tmp_path / "plain.mp4", 4).rename(folder / os.fsdecode(b"clip\xff.mp4"))
    assert load_clips(folder, "", 4, **SIZE).captions == ["horse? run"]
    assert load_clips(folder, "a {motion}", 4, **SIZE).captions == ["a horse? run"]
    assert load_clips(folder, "a \ud800", 4, **SIZE).captions == ["a ?"]

    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", plain)
    assert main(["metrics", str(path)]) == DONE
    plain.seek(0)
    assert "clip\\udcff.mp4" in plain.read()


def test_the_longest_possible_name(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "a.mp4", 4).rename(tmp_path / f"{'x' * 251}.mp4")
    assert list_clips(tmp_path) == [path]
    assert load_clips(tmp_path, "", 4, **SIZE).infos[0].name == path.name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_changed_bytes_give_a_clip_or_an_error(tmp_path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    how = ({}, {"codec": "mpeg4"}, {"codec": "gif", "pixels": "rgb8"})[seed % 3]
    ending = ("mp4", "avi", "gif")[seed % 3]
    path = write_video(tmp_path / f"a.{ending}", noise, **how)
    sound = path.read_bytes()
    random = np.random.default_rng(seed)
    for _ in range(25):
        data = bytearray(sound)
        for place in random.integers(0, len(data), 8):
            data[place] = random.integers(256)
        path.write_bytes(data[: random.integers(1, len(data) + 1)])
        try:
            clips = load_clips([path], "", 2, short="loop", **SIZE)
            assert torch.cat(list(clips.chunks(0))).shape[1:] == (48, 64, 3)
        except ClipError as error:
            assert f"a.{ending}" in str(error)


_STALLING = Path(__file__).parents[1] / "data" / "stalling.mkv"


@pytest.mark.slow
def test_a_damaged_clip_does_not_stall_the_decoder() -> None:
    """Found by changing bytes of a sound clip in HEVC: FFmpeg's threads, when each of them decodes
    a frame of its own, wait for each other for ever, and with them the process."""
    script = (
        "import sys; from pathlib import Path; from tests.helpers.clip_reading import probe;"
        "print(probe(Path(sys.argv[1])).frames)"
    )
    run = [sys.executable, "-c", script, str(_STALLING)]
    root = Path(__file__).parents[2]
    ended = subprocess.run(run, cwd=root, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and int(ended.stdout) <= 8, ended


# --- folders ------------------------------------------------------------------------------------


def test_links_are_followed_or_named(tmp_path: Path) -> None:
    inside, outside = tmp_path / "clips", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    target = write_numbered(outside / "film.mp4", 4)
    (inside / "a.mp4").symlink_to(target)
    (inside / "up").symlink_to(tmp_path)
    (inside / "round").symlink_to(inside / "round")
    assert [path.name for path in list_clips(inside)] == ["a.mp4"]
    assert load_clips(inside, "", 4, **SIZE).captions == ["clips"]
    (inside / "gone.mp4").symlink_to(outside / "nothing.mp4")
    (inside / "loop.mp4").symlink_to(inside / "loop.mp4")
    for name in ("gone.mp4", "loop.mp4"):
        with pytest.raises(ClipError, match=f"'{name}' cannot be read"):
            load_clips([inside / name], "", 4, **SIZE)


def test_only_folders_inside_the_input_folder_are_offered(
    pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths
    from comfyui_lamp.nodes.clips import clip_folders

    for folder in ("input/horses/rare", "input/.hidden/x", "outside/deeper"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "input/out").symlink_to(tmp_path / "outside")
    (tmp_path / "input/round").symlink_to(tmp_path / "input")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    assert set(clip_folders()) == {"input/horses", "input/horses/rare"}


@pytest.mark.slow
def test_thousands_of_files_are_listed_in_order(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number}.txt").touch()
        (tmp_path / f"clip{number}.mp4").touch()
    assert [path.name for path in list_clips(tmp_path)] == [f"clip{n}.mp4" for n in range(3000)]


@pytest.mark.parametrize("what", ["folder", "clip", "image"])
def test_files_that_vanish_during_listing_are_named_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(numbered_frame(1)).save(pictures / "1.png")
    write_numbered(tmp_path / "film.mp4", 4)
    iterdir = Path.iterdir

    def vanishing(self: Path) -> object:
        if (what == "folder" and self == tmp_path) or (what == "image" and self == pictures):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        found = list(iterdir(self))
        if what == "clip" and self == tmp_path:
            (tmp_path / "film.mp4").unlink()
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", vanishing)
    with pytest.raises(ClipError, match="(folder|clip) '.*' cannot be read"):
        for clip in list_clips(tmp_path):
            read_frames(clip, [0])


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    """Reading a pipe without a writer would never end."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes on this system")
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.webp")
    write_numbered(tmp_path / "film.mp4", 4)
    assert [path.name for path in list_clips(tmp_path)] == ["film.mp4"]
