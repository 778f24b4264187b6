"""Decoding: small videos of every kind, against a reference decoder."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.samples.clip_files import numbered_frame, numbers_of, write_numbered, write_video
from lamp.clips.decoding.reader import SourceFrame
from lamp.clips.video import resample
from lamp.errors import ClipError
from tests.helpers.clip_reading import list_clips, probe, read_frames

KINDS = {
    "h264.mp4": {},
    "hevc10.mp4": {"codec": "libx265", "pixels": "yuv420p10le"},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuv444p10le"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8.webm": {"codec": "libvpx"},
    "h264.mkv": {},
    "mpeg4.avi": {"codec": "mpeg4"},
    "animated.gif": {"codec": "gif", "pixels": "rgb8"},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(tmp_path, name):
    path = write_numbered(tmp_path / name, 20, **KINDS[name])
    info = probe(path)
    assert (info.name, info.frames, info.fps) == (name, 20, 10.0)
    assert (info.width, info.height) == (64, 48)
    frames = read_frames(path, range(20))
    assert frames.dtype == torch.uint8 and frames.shape == (20, 48, 64, 3)
    tolerance = 2 if name == "animated.gif" else 0  # its palette has few greys
    off = np.abs(np.array(numbers_of(frames)) - np.arange(20))
    assert off.max() <= tolerance


def test_pixels_match_a_reference_decoder(shared_dir):
    path = shared_dir / "fixtures" / "dataset" / "horse_run" / "clip0.mp4"
    reference = load_file(shared_dir / "fixtures" / "dataset.safetensors")["raw_u8"]
    assert probe(path).frames == 30
    assert torch.equal(read_frames(path, range(30)), reference)
    assert torch.equal(read_frames(path, [29, 3, 3, 17]), reference[[29, 3, 3, 17]])


@pytest.mark.parametrize(
    "name", ["two words.mp4", "骑自行车 – größe.mp4", 'it\'s "so".mp4', "a:b %03d.mp4", "x.MP4"]
)
def test_awkward_names(tmp_path, name):
    path = write_numbered(tmp_path / "plain.mp4", 3).rename(tmp_path / name)
    assert list_clips(tmp_path) == [path]
    assert numbers_of(read_frames(path, [2, 0])) == [2, 0]


@pytest.mark.parametrize("size", [(63, 47), (17, 101)])
def test_odd_sizes(tmp_path, size):
    path = write_numbered(tmp_path / "odd.mp4", 3, *size, pixels="yuv444p")
    assert read_frames(path, [1]).shape == (1, size[1], size[0], 3)
    assert read_frames(path, [1], 32, 24).shape == (1, 24, 32, 3)


def test_animated_webp(tmp_path):
    pictures = [Image.fromarray(numbered_frame(number)) for number in range(6)]
    path = tmp_path / "clip.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=50, lossless=True)
    assert list_clips(tmp_path) == [path]
    info = probe(path)
    assert (info.frames, info.fps) == (6, pytest.approx(20))
    assert numbers_of(read_frames(path, range(6))) == list(range(6))


def save_images(folder: Path, count: int, ending: str = ".png") -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(numbered_frame(number)).save(folder / f"image{number}{ending}")
    (folder / "Thumbs.db").write_bytes(b"not an image")
    return folder


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp"])
def test_folder_of_images_in_natural_order(tmp_path, ending):
    folder = save_images(tmp_path / "my clip", 12, ending)
    assert list_clips(tmp_path) == [folder]
    info = probe(folder)
    assert (info.frames, info.fps, info.width, info.height) == (12, None, 64, 48)
    assert numbers_of(read_frames(folder, range(12))) == list(range(12))


def test_images_of_different_size_are_fitted(tmp_path):
    folder = save_images(tmp_path / "clip", 2)
    Image.fromarray(numbered_frame(1, 100, 50)).save(folder / "image1.png")
    assert numbers_of(read_frames(folder, [0, 1], 32, 24)) == [0, 1]


def test_rotation_from_the_track_matrix(tmp_path):
    """A rotation by 90 degrees is written into the track's matrix by hand."""
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:24, :24, 0] = 255  # red in the corner above left
    path = write_video(tmp_path / "phone.mp4", [frame] * 3, pixels="yuv444p")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    shown = read_frames(path, [1])[0].float()
    assert shown.shape == (96, 48, 3)
    assert shown[:20, 28:, 0].mean() > 200  # the corner is now above right
    assert shown[:20, :20, 0].mean() < 40 and shown[60:, :, 0].mean() < 40
    assert (probe(path).width, probe(path).height) == (48, 96)


def test_square_pixels(tmp_path):
    path = write_numbered(tmp_path / "dv.mkv", 2, 64, 48, aspect=Fraction(3, 2))
    assert read_frames(path, [0]).shape == (1, 48, 96, 3)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("a.mov", "qtrle", "argb"), ("a.webm", "libvpx-vp9", "yuva420p")],
)
def test_transparent_parts_are_black(tmp_path, name, codec, pixels):
    frame = np.full((48, 64, 4), 200, np.uint8)
    frame[:, :32, 3], frame[:, 32:, 3] = 0, 255
    path = write_video(tmp_path / name, [frame] * 2, codec=codec, pixels=pixels)
    shown = read_frames(path, [1])[0].float()
    assert shown[:, :28].mean() < 3
    assert shown[:, 36:].mean() == pytest.approx(200, abs=4)


def test_half_transparent_png(tmp_path):
    (tmp_path / "clip").mkdir()
    Image.new("RGBA", (16, 16), (200, 100, 50, 128)).save(tmp_path / "clip" / "1.png")
    shown = read_frames(tmp_path / "clip", [0])[0, 0, 0]
    assert shown.tolist() == [round(value * 128 / 255) for value in (200, 100, 50)]


def test_list_leaves_other_files_alone(tmp_path):
    for name in ("clip10.mp4", "clip2.mp4", "Clip1.GIF"):
        (tmp_path / name).touch()
    for name in ("Thumbs.db", ".DS_Store", "._clip2.mp4", "clip2.txt", "notes.md", "loose.png"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "still.webp")
    assert [path.name for path in list_clips(tmp_path)] == ["Clip1.GIF", "clip2.mp4", "clip10.mp4"]


def test_empty_and_missing_folders_are_named(tmp_path):
    with pytest.raises(ClipError, match=r"'.*'.* \(.mp4 .*gif") as error:
        list_clips(tmp_path)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(ClipError, match="no folder '.*nowhere'"):
        list_clips(tmp_path / "nowhere")


def cut_off(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("end.mp4", {}),
        ("start.mp4", {"movflags": "faststart"}),
        ("clip.mkv", {}),
        ("clip.webm", {"codec": "libvpx-vp9"}),
        ("clip.avi", {"codec": "mpeg4"}),
        ("clip.gif", {"codec": "gif", "pixels": "rgb8"}),
    ],
)
def test_truncated_files_are_named(tmp_path, name, how):
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    path = cut_off(write_video(tmp_path / name, list(noise), **how))
    with pytest.raises(ClipError, match=f"'{name}'"):
        probe(path)
    with pytest.raises(ClipError, match=f"'{name}'"):
        read_frames(path, range(30))


def test_decoding_stops_after_the_last_requested_frame(tmp_path):
    """Damage after it is never reached."""
    path = cut_off(write_numbered(tmp_path / "clip.mkv", 30, codec="mpeg4", pixels="yuv420p"))
    assert numbers_of(read_frames(path, [1, 0])) == [1, 0]


@pytest.mark.parametrize("content", [b"", b"hello " * 99])
@pytest.mark.parametrize("ending", ["mp4", "gif", "webm", "webp"])
def test_other_files_are_refused(tmp_path, content, ending):
    path = tmp_path / f"odd.{ending}"
    path.write_bytes(content)
    assert list_clips(tmp_path) == [path]
    with pytest.raises(ClipError, match=f"'odd.{ending}' cannot be read: .*") as error:
        read_frames(path, [0])
    assert ("the file is empty" in str(error.value)) == (not content)
    assert str(tmp_path) not in str(error.value)


def test_a_broken_image_is_named_with_its_folder(tmp_path):
    folder = save_images(tmp_path / "clip", 3)
    (folder / "image1.png").write_bytes(b"no image")
    with pytest.raises(ClipError, match="'clip/image1.png' cannot be read"):
        read_frames(folder, range(3))


def test_only_sound(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 4096), np.float32), "fltp", "stereo")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="'song.mp4'.* sound"):
        probe(path)


def test_a_missing_clip_is_named(tmp_path):
    with pytest.raises(ClipError, match="other.mp4"):
        read_frames(tmp_path / "other.mp4", [0])


def test_cropped_frames_keep_their_aspect_ratio(tmp_path):
    """A clip twice as wide as high, with a white left and right quarter, cropped to a square."""
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:, :24] = frame[:, 72:] = 255
    path = write_video(tmp_path / "wide.mp4", [frame] * 2, pixels="yuv444p")
    assert read_frames(path, [0], 32, 32, "crop").float().mean() < 12
    assert read_frames(path, [0], 32, 32, "stretch").float().mean() == pytest.approx(127.5, abs=8)


def resampled(times: list[float | None], fps: float) -> list[int]:
    frames = [SourceFrame(time, lambda n=n: torch.tensor(n)) for n, time in enumerate(times)]
    return [int(frame.load()) for frame in resample(iter(frames), fps)]


@pytest.mark.parametrize("fps", [4, 8, 11.3, 30, 60])
@pytest.mark.parametrize("seed", range(4))
def test_resample_takes_the_nearest_frames(fps, seed):
    steps = np.random.default_rng(seed).uniform(0.01, 0.12, 40)
    times = 5 + np.cumsum(steps)
    end = times[-1] - times[0] + steps[-1]
    targets = np.arange(0, end - 1e-6, 1 / fps)
    nearest = np.abs(targets[:, None] - (times - times[0])).argmin(1)
    assert resampled(times.tolist(), fps) == nearest.tolist()


def test_resample_by_whole_factors_and_without_timestamps():
    thirty = [number / 30 for number in range(30)]
    assert resampled(thirty, 10) == list(range(0, 30, 3))
    assert resampled(thirty, 30) == list(range(30))
    assert len(resampled(thirty, 24)) == 24
    assert resampled([None] * 5, 10) == list(range(5))
    assert resampled([3.0], 10) == [0]


@pytest.mark.parametrize("name", ["vary.mkv", "vary.mp4"])
def test_variable_rate(tmp_path, name):
    """Fast at first, then slow: even times repeat the slow frames."""
    times = [0, 5, 10, 15, 20, 60, 100, 140]
    path = write_numbered(tmp_path / name, 8, times=times)
    assert probe(path).frames == 8
    from lamp.clips.decoding.choose import source_frames

    shown = [frame.load() for frame in resample(source_frames(path), 5)]
    nearest = [np.abs(np.array(times) - t).argmin() for t in range(0, 180, 20)]
    assert numbers_of(torch.stack(shown)) == nearest
