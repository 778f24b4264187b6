"""Which files in a folder are clips; everything else is named with a reason."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.samples.clip_files import numbered_frame, numbers_of, write_numbered
from lamp.clips.decoding import pictures
from lamp.clips.listing import find_clips
from lamp.clips.load import load_clips
from lamp.clips.report import describe_clips
from lamp.errors import ClipError
from tests.helpers.clip_reading import read_frames

SIZE = {"width": 64, "height": 48}
KINDS = {
    "ts": {}, "mts": {"as": "ts"}, "m2ts": {}, "wmv": {"codec": "wmv2"}, "asf": {"codec": "wmv2"},
    "flv": {"codec": "libx264"}, "mpg": {"codec": "mpeg2video", "rate": 25}, "3gp": {}, "3g2": {},
    "mpeg": {"codec": "mpeg2video", "rate": 25}, "vob": {"codec": "mpeg2video", "rate": 25},
    "ogv": {"codec": "libvpx"}, "qt": {"as": "mov"}, "mp4v": {"as": "mp4"}, "f4v": {},
    "MP4": {"as": "mp4"}, "m4v": {"as": "mp4"}, "mov": {}, "mkv": {}, "avi": {},
    "webm": {"codec": "libvpx-vp9"}, "gif": {"codec": "gif", "pixels": "rgb8"},
}  # fmt: skip


def save_animation(path: Path, count: int = 6) -> None:
    shown = [Image.fromarray(numbered_frame(number)) for number in range(count)]
    kind = {".apng": "PNG", ".png": "PNG", ".webp": "WEBP", ".avif": "AVIF"}[path.suffix]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    shown[0].save(path, kind, save_all=True, append_images=shown[1:], duration=100, **lossless)


@pytest.mark.parametrize("ending", KINDS)
def test_videos_of_every_extension_are_clips(tmp_path: Path, ending: str) -> None:
    how = dict(KINDS[ending])
    kind = how.pop("as", ending)
    write_numbered(tmp_path / f"clip.{kind}", 8, **how).rename(tmp_path / f"clip.{ending}")
    clips = load_clips(tmp_path, "", 4, **SIZE)
    assert [info.name for info in clips.infos] == [f"clip.{ending}"]
    assert clips.length(0) == 8
    assert not [text for text in clips.warnings if "Left out" in text]


@pytest.mark.parametrize("name", ["a.apng", "a.png", "a.webp", "a.avif"])
def test_animated_pictures_are_clips(tmp_path: Path, name: str) -> None:
    if name == "a.avif" and not pictures.knows_avif():
        pytest.skip("this Pillow knows no AVIF")
    save_animation(tmp_path / name)
    clips = load_clips(tmp_path, "", 4, **SIZE)
    assert [info.name for info in clips.infos] == [name]
    assert numbers_of(clips.frames(0, range(6))) == list(range(6))


def test_avif_is_read_without_pillows_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pictures.knows_avif():
        pytest.skip("this Pillow writes no AVIF")
    save_animation(tmp_path / "a.avif")
    monkeypatch.setattr(pictures, "knows_avif", lambda: False)
    assert numbers_of(read_frames(tmp_path / "a.avif", range(6))) == list(range(6))


def fill(folder: Path) -> dict[str, list[str]]:
    """A folder with one clip and everything that is not one, by a word of the reason."""
    write_numbered(folder / "film.mp4", 6)
    (folder / "film.txt").write_text("a film")
    for name in ("table.csv", "sound.wav", "film.mp4.part", "photo.heic"):
        (folder / name).write_bytes(b"x")
    Image.new("RGB", (8, 8)).save(folder / "still.png")
    Image.new("RGB", (8, 8)).save(folder / "still.jpg")
    (folder / "other.txt").write_text("of no clip")
    (folder / "empty").mkdir()
    (folder / "more").mkdir()
    write_numbered(folder / "more" / "inner.mp4", 6)
    (folder / "animations").mkdir()
    save_animation(folder / "animations" / "a.png")
    (folder / "frames").mkdir()
    for number in range(4):
        Image.fromarray(numbered_frame(number)).save(folder / "frames" / f"{number}.png")
    (folder / "frames" / "notes.md").write_text("x")
    for name in (".hidden", "Thumbs.db", ".DS_Store", "._film.mp4", "desktop.ini"):
        (folder / name).write_bytes(b"x")
    return {
        "convert": ["film.mp4.part", "frames/notes.md", "photo.heic", "sound.wav", "table.csv"],
        "sub-folder": ["still.jpg", "still.png"],
        "captions": ["other.txt"],
        "without pictures": ["empty"],
        "folders of clips": ["animations", "more"],
    }


def test_every_file_left_out_is_named_with_a_reason(tmp_path: Path) -> None:
    expected = fill(tmp_path)
    clips = load_clips(tmp_path, "", 4, **SIZE)
    assert [info.name for info in clips.infos] == ["film.mp4", "frames"]
    told = [text for text in clips.warnings if text.startswith("Left out")]
    assert len(told) == len(expected)
    for reason, names in expected.items():
        (line,) = [text for text in told if reason in text]
        assert [name for name in names if f"'{name}'" not in line] == []
        assert line.count("'") == 2 * len(names)
    report = describe_clips(clips)
    assert all(f"Warning: {text}" in report for text in told)


def test_the_error_for_a_folder_without_clips_lists_its_files(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    with pytest.raises(ClipError, match="'still.png'"):
        find_clips(tmp_path)


def test_long_lists_are_split_into_complete_lines(tmp_path: Path) -> None:
    write_numbered(tmp_path / "film.mp4", 6)
    names = [f"something with a long name {number}.bin" for number in range(150)]
    for name in names:
        (tmp_path / name).touch()
    report = describe_clips(load_clips(tmp_path, "", 4, **SIZE))
    assert [name for name in names if f"'{name}'" not in report] == []


def test_the_node_reports_what_was_left_out(
    node_classes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    (tmp_path / "horses").mkdir()
    expected = fill(tmp_path / "horses")
    node = node_classes["LAMP_TrainingClips"]
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id=None))
    shown = sys.modules["comfy_api.latest"].ui
    picture = SimpleNamespace(as_dict=lambda: {"images": ["a.png"]})
    monkeypatch.setattr(shown, "PreviewImage", lambda sheet, cls: picture)
    settings = {"frames": 4, "fps": 0.0, "stride": 1, "fit": "crop", "short_clips": "error",
                "flip": False, **SIZE}  # fmt: skip
    found = node.execute(
        folder=["input/horses"], prompt=[""], **{name: [value] for name, value in settings.items()}
    )
    report = found[1]
    for names in expected.values():
        assert all(f"'{name}'" in report for name in names)


# --- folders of pictures --------------------------------------------------------------------------


def test_pictures_of_mixed_extensions_are_all_read(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    endings = ["png", "jpg", "JPEG", "webp", "bmp", "tif", "TIFF", "jfif", "jpe", "ppm", "dib"]
    if pictures.knows_avif():
        endings.append("avif")
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "dib": "BMP"}
    for number, ending in enumerate(endings):
        Image.fromarray(numbered_frame(number)).save(
            folder / f"{number}.{ending}", kinds.get(ending), quality=100
        )
    clips = load_clips(tmp_path, "", 4, **SIZE)
    assert numbers_of(clips.frames(0, range(len(endings)))) == list(range(len(endings)))
    assert not [text for text in clips.warnings if "Left out" in text]


RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)


@pytest.mark.parametrize(
    ("ending", "pixels"),
    [
        ("png", (RAMP * 65535).round().astype(np.uint16)),
        ("tif", (RAMP * 65535).round().astype(np.uint16)),
        ("tif", (RAMP * 65535).round().astype(">u2")),
        ("tif", RAMP.astype(np.float32)),
        ("tif", (RAMP * (2**31 - 1)).round().astype(np.int32)),
        ("pgm", (RAMP * 65535).round().astype(np.uint16)),
    ],
)
def test_pictures_of_more_than_8_bits_are_scaled(
    tmp_path: Path, ending: str, pixels: np.ndarray
) -> None:
    kind = {"pgm": "PPM"}.get(ending)
    if pixels.dtype == np.dtype(">u2"):
        image = Image.frombytes("I;16B", (64, 48), pixels.tobytes())
    else:
        image = Image.fromarray(pixels)
    image.save(tmp_path / f"0.{ending}", kind)
    shown = read_frames(tmp_path, [0])[0].numpy()
    assert np.abs(shown - (RAMP * 255)[..., None]).max() <= 0.51


def write_tiff(path: Path, pixels: np.ndarray, white_is_zero: bool = False) -> None:
    """A grey TIFF in one strip, with the bits and sign of the dtype."""
    height, width = pixels.shape
    bits, kind = 8 * pixels.itemsize, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, int(not white_is_zero)),
            (273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height), (279, pixels.nbytes),
            (339, kind)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    path.write_bytes(head + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.uint32, np.int32, np.float32])
def test_every_sample_format_is_scaled(tmp_path: Path, kind: type) -> None:
    most = 1 if kind is np.float32 else np.iinfo(kind).max
    pixels = (RAMP * most) if kind is np.float32 else (RAMP * most).round()
    write_tiff(tmp_path / "0.tif", pixels.astype(kind))
    shown = read_frames(tmp_path, [0])[0].numpy()
    assert np.abs(shown - (RAMP * 255)[..., None]).max() <= 0.51


def test_white_may_be_zero(tmp_path: Path) -> None:
    pixels = (RAMP * 65535).round().astype(np.uint16)
    write_tiff(tmp_path / "0.tif", pixels, white_is_zero=True)
    shown = read_frames(tmp_path, [0])[0].numpy()
    assert np.abs(shown - (255 - RAMP * 255)[..., None]).max() <= 0.51


def test_16_bit_pictures_are_scaled_alike(tmp_path: Path) -> None:
    """A dark one next to a bright one stays dark."""
    for number, value in enumerate((300, 40_000)):
        Image.fromarray(np.full((48, 64), value, np.uint16)).save(tmp_path / f"{number}.png")
    shown = read_frames(tmp_path, [0, 1])
    assert [int(picture[0, 0, 0]) for picture in shown] == [1, 156]


def test_a_transparent_value_of_a_16_bit_picture_is_black(tmp_path: Path) -> None:
    pixels = np.full((48, 64), 50_000, np.uint16)
    pixels[:, :32] = 1234
    Image.fromarray(pixels).save(tmp_path / "0.png", transparency=1234)
    shown = read_frames(tmp_path, [0])[0]
    assert shown[:, :32].max() == 0 and int(shown[0, -1, 0]) == 195


@pytest.mark.parametrize("value", [200.0, float("nan"), float("inf")])
def test_floats_outside_0_to_1_are_named(tmp_path: Path, value: float) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    Image.fromarray(np.full((48, 64), value, np.float32)).save(folder / "0.tif")
    with pytest.raises(ClipError, match="'clip/0.tif'"):
        read_frames(folder, [0])


@pytest.mark.parametrize("mode", ["LA", "RGBA", "L", "P", "1", "CMYK"])
def test_picture_modes_over_black(tmp_path: Path, mode: str) -> None:
    ending = "tif" if mode == "CMYK" else "png"
    source = Image.fromarray(np.full((48, 64, 4), (200, 100, 50, 128), np.uint8))
    source.convert(mode).save(tmp_path / f"0.{ending}")
    with Image.open(tmp_path / f"0.{ending}") as made:
        plain = made.convert("RGBA")
    expected = Image.new("RGBA", (64, 48), (0, 0, 0, 255))
    expected.alpha_composite(plain)
    shown = read_frames(tmp_path, [0])[0].numpy()
    assert np.abs(shown.astype(int) - np.asarray(expected.convert("RGB"))).max() <= 1


def test_an_animation_among_frames_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in (0, 2):
        Image.fromarray(numbered_frame(number)).save(folder / f"{number}.png")
    save_animation(folder / "1.webp")
    with pytest.raises(ClipError, match="'clip/1.webp'"):
        load_clips(tmp_path, "", 2, **SIZE)
