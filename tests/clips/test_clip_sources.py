"""Clip sources: decoded in pieces, identified by content, checked for changes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.samples.clip_files import (
    numbered_frame,
    numbers_of,
    sliding,
    write_numbered,
    write_video,
)
from lamp.clips.decoding.reader import VideoBytes
from lamp.clips.images import fit_images
from lamp.clips.load import clips_from_images, clips_from_sources, load_clips
from lamp.clips.settings import ClipSettings
from lamp.clips.sources import FileSource
from lamp.errors import ClipError

SIZE = {"width": 64, "height": 48}


def reference(path: Path) -> torch.Tensor:
    """All frames of a file, from a plain PyAV loop."""
    with av.open(str(path)) as container:
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24"))
                            for f in container.decode(video=0)])  # fmt: skip


# --- frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 16, 30, 99])
def test_chunks_are_the_frames_in_order(shared_dir, count):
    path = shared_dir / "fixtures" / "dataset" / "horse_run" / "clip0.mp4"
    clips = load_clips([path], "", 8, width=96, height=64)
    chunks = list(clips.chunks(0, count))
    assert [len(chunk) for chunk in chunks[:-1]] == [count] * (len(chunks) - 1)
    assert 0 < len(chunks[-1]) <= count
    whole = torch.cat(chunks)
    assert whole.dtype == torch.uint8 and len(whole) == clips.length(0) == 30
    fixture = load_file(shared_dir / "fixtures" / "dataset.safetensors")["raw_u8"]
    assert torch.equal(whole, fixture)
    assert torch.equal(torch.cat(list(clips.chunks(0, count, mirrored=True))), fixture.flip(2))


@pytest.mark.slow
def test_real_clips_have_all_frames_of_their_files(shared_dir):
    paths = [path for path in sorted((shared_dir / "data").rglob("*.mp4"))]
    assert len(paths) > 3
    clips = load_clips(paths, "", 16, width=64, height=40, max_frames=90)
    for number, path in enumerate(paths):
        with av.open(str(path)) as container:
            count = sum(1 for _ in container.decode(video=0))
        assert clips.infos[number].frames == count
        assert clips.length(number) == min(count, 90)


def test_real_pixels_match_a_reference_decoder(shared_dir):
    path = shared_dir / "data" / "single" / "car-turn.mp4"
    clips = load_clips([path], "", 16, width=256, height=160, max_frames=30)
    expected = fit_images(reference(path)[:30], 256, 160, "crop")
    assert torch.equal(torch.cat(list(clips.chunks(0))), expected)


def test_images_are_sliced_from_their_batch():
    batch = sliding(10, 3)
    clips = clips_from_images([batch], "x", 4, **SIZE)
    assert torch.equal(torch.cat(list(clips.chunks(0, 3))), (batch * 255).round().byte())
    assert torch.equal(clips.frames(0, [2, 7]), (batch[[2, 7]] * 255).round().byte())


def test_a_looped_clip_is_played_again(tmp_path):
    clips = load_clips([write_numbered(tmp_path / "a.mp4", 5)], "", 12, short="loop", **SIZE)
    assert clips.length(0) == 12
    expected = [*range(5), *range(5), 0, 1]
    assert numbers_of(torch.cat(list(clips.chunks(0, 4)))) == expected
    assert numbers_of(clips.frames(0, [4, 5, 11])) == [4, 0, 1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_film(tmp_path):
    """250 frames of 640 x 384, 184 MB as a whole, read in a process of its own."""
    pytest.importorskip("resource")
    frames = (np.full((384, 640, 3), number % 256, np.uint8) for number in range(250))
    path = write_video(tmp_path / "film.mp4", frames, codec="mpeg4")
    program = (
        "import resource, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from lamp.clips.load import load_clips\n"
        "from lamp.clips.report import contact_sheet, describe_clips\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "few = load_clips([sys.argv[1]], '', 16, 640, 384, max_frames=32)\n"
        "list(few.chunks(0, 16)), describe_clips(few), contact_sheet(few)\n"
        "before = peak()\n"
        "clips = load_clips([sys.argv[1]], '', 16, 640, 384, max_frames=250)\n"
        "count = sum(len(chunk) for chunk in clips.chunks(0, 16))\n"
        "describe_clips(clips), contact_sheet(clips), clips.key(0)\n"
        "print(count, peak() - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    count, grown = run.stdout.split()
    assert int(count) == 250
    assert float(grown) < 60  # MB; a chunk of 16 frames has 12


# --- files in memory -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif"])
def test_a_video_in_memory(tmp_path, name):
    codecs = {"a.webm": {"codec": "libvpx-vp9"}, "a.gif": {"codec": "gif", "pixels": "rgb8"}}
    path = write_numbered(tmp_path / name, 12, **codecs.get(name, {}))
    film = VideoBytes("video 2", path.read_bytes())
    clips = clips_from_sources([FileSource(film)], "x", ClipSettings(4, 64, 48))
    beside = load_clips([path], "x", 4, **SIZE)
    assert torch.equal(next(clips.chunks(0)), next(beside.chunks(0)))
    assert clips.infos[0].name == "video 2" and clips.key(0) == beside.key(0)
    with pytest.raises(ClipError, match="'video 2'"):
        broken = FileSource(VideoBytes("video 2", film.data[: len(film.data) // 2]))
        clips_from_sources([broken], "x", ClipSettings(4, 64, 48))


# --- keys -----------------------------------------------------------------------------------


def test_the_key_covers_content_and_settings(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 20)
    copy = tmp_path / "other name.mp4"
    copy.write_bytes(path.read_bytes())
    other = write_numbered(tmp_path / "b.mp4", 21)

    def key(path: Path = path, frames: int = 4, **settings: object) -> str:
        return load_clips([path], "", frames, **{**SIZE, **settings}).key(0)

    plain = key()
    assert len(plain) == 64 and int(plain, 16)
    # None of these changes a frame.
    same = [key(copy), key(stride=2), key(flip=True), key(frames=7), key(max_frames=20)]
    assert set(same) == {plain}
    others = [
        key(other), key(width=32), key(height=32), key(fit="stretch"), key(fps=5.0),
        key(max_frames=19), key(frames=25, short="loop"),
    ]  # fmt: skip
    assert len({plain, *others}) == len(others) + 1


def test_entries_of_an_earlier_version_are_not_reused(tmp_path):
    """Version 1 decoded many clips with other colours, times and sizes."""
    clips = load_clips([write_numbered(tmp_path / "a.mp4", 20)], "", 4, **SIZE)
    shape = {
        "format": 1, "content": clips.sources[0].source.digest, "size": (64, 48), "fit": "crop",
        "fps": None, "once": 20, "length": 20,
    }  # fmt: skip
    earlier = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
    assert clips.key(0) != earlier


def test_the_key_of_images_covers_their_bytes():
    batch = sliding(6, 2)
    changed = batch.clone()
    changed[3, 4, 5, 1] += 1e-4
    keys = [clips_from_images([b], "x", 4, **SIZE).key(0) for b in (batch, batch.clone(), changed)]
    assert keys[0] == keys[1] != keys[2]
    half = clips_from_images([batch.bfloat16()], "x", 4, **SIZE)
    assert half.key(0) not in keys
    slow, fast = (clips_from_images([batch], "x", 2, rates=[r], fps=5, **SIZE) for r in (5, 10))
    assert slow.key(0) != fast.key(0)


def test_the_key_of_a_folder_of_images(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, numbers in zip(folders, [(1, 2, 3), (1, 2, 3), (1, 3, 2)], strict=True):
        folder.mkdir()
        for place, number in enumerate(numbers):
            Image.fromarray(numbered_frame(number)).save(folder / f"{place}.png")
    clips = load_clips(folders, "", 3, **SIZE)
    assert clips.key(0) == clips.key(1) != clips.key(2)


# --- changes on the disk --------------------------------------------------------------------


def test_a_clip_that_is_gone_or_changed_is_named(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 8)
    clips = load_clips([path], "", 4, **SIZE)
    data = path.read_bytes()
    path.unlink()
    for use in (lambda: next(clips.chunks(0)), lambda: clips.key(0)):
        with pytest.raises(ClipError, match="'a.mp4' is gone"):
            use()
    path.write_bytes(data[:-1])
    with pytest.raises(ClipError, match="'a.mp4' has changed"):
        next(clips.chunks(0))


def test_an_image_that_vanishes_is_named(tmp_path):
    folder = tmp_path / "take one"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(numbered_frame(number)).save(folder / f"{number}.png")
    clips = load_clips([folder], "", 4, **SIZE)
    chunks = clips.chunks(0, 2)
    next(chunks)
    (folder / "3.png").unlink()
    with pytest.raises(ClipError, match="'take one/3.png'"):
        list(chunks)
    with pytest.raises(ClipError, match="'3.png' .*'take one'"):
        next(clips.chunks(0))


def test_a_clip_that_lost_frames_is_named(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 20)
    clips = load_clips([path], "", 4, **SIZE)
    seen = path.stat()
    data = write_numbered(tmp_path / "b.mp4", 12).read_bytes()
    path.write_bytes(data + bytes(seen.st_size - len(data)))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    with pytest.raises(ClipError, match="'a.mp4' .*20 .*12"):
        list(clips.chunks(0))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "mpeg4")]
)
def test_a_clip_damaged_in_the_middle_is_named_with_the_frame(tmp_path, name, codec):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, noise, codec=codec, intra=True)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    path.write_bytes(data)
    with pytest.raises(ClipError, match=f"'{name}'") as error:
        load_clips([path], "", 4, **SIZE)
    frame = re.search(r"after frame (\d+)", str(error.value))
    second = re.search(r"damaged ([\d.]+) seconds", str(error.value))
    place = int(frame[1]) if frame else 10 * float(second[1])
    assert 10 <= place <= 22
