"""Colours of clips on every PyAV: matrices and ranges of YUV by the formulas of ITU-T H.273, RGB
untouched, HDR brought to SDR."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lamp.clips.load import load_clips
from tests.helpers.clip_reading import read_frames

pytestmark = pytest.mark.usefixtures("no_flow")

COLOURS = np.array([[(220, 30, 30), (30, 200, 40)], [(40, 50, 220), (230, 210, 30)]], np.float64)
"""The four corners."""
WIDTH, HEIGHT = 64, 48
MATRICES = {  # FFmpeg's number, Kr, Kb
    "untold": (2, 0.299, 0.114),
    "bt601": (5, 0.299, 0.114),
    "smpte170m": (6, 0.299, 0.114),
    "bt709": (1, 0.2126, 0.0722),
    "smpte240m": (7, 0.212, 0.087),
    "fcc": (4, 0.30, 0.11),
    "bt2020": (9, 0.2627, 0.0593),
}
LIMITED, FULL = 1, 2


def corners(picture: torch.Tensor) -> np.ndarray:
    """The mean colours of the four corners, ``2 2 3``."""
    height, width = picture.shape[0] // 8, picture.shape[1] // 8
    top, bottom = picture[:height].double(), picture[-height:].double()
    found = [(half[:, :width], half[:, -width:]) for half in (top, bottom)]
    return np.stack([[part.mean((0, 1)).numpy() for part in pair] for pair in found])


def assert_colours(path: Path, expected: np.ndarray = COLOURS, tolerance: float = 3.0) -> None:
    assert np.abs(corners(read_frames(path, [2])[0]) - expected).max() <= tolerance


def to_yuv(rgb: np.ndarray, matrix: str, full: bool, bits: int) -> np.ndarray:
    """``... 3`` in 0..1 -> whole numbers, Y Cb Cr."""
    _, red, blue = MATRICES[matrix]
    luma = rgb @ (red, 1 - red - blue, blue)
    cb = (rgb[..., 2] - luma) / (2 * (1 - blue))
    cr = (rgb[..., 0] - luma) / (2 * (1 - red))
    scale = 2 ** (bits - 8)
    if full:
        planes = [luma * (2**bits - 1), *(c * (2**bits - 1) + 128 * scale for c in (cb, cr))]
    else:
        planes = [(219 * luma + 16) * scale, *((224 * c + 128) * scale for c in (cb, cr))]
    return np.stack(planes, -1).round()


def quarters(values: np.ndarray) -> np.ndarray:
    """A picture ``h w 3`` with one value for each quarter."""
    return values.repeat(HEIGHT // 2, 0).repeat(WIDTH // 2, 1)


def yuv_frame(values: np.ndarray, layout: str, bits: int) -> av.VideoFrame:
    frame = av.VideoFrame(WIDTH, HEIGHT, layout)
    kind = np.uint8 if bits == 8 else np.uint16
    picture = quarters(values)
    for plane, channel in zip(frame.planes, np.moveaxis(picture, -1, 0), strict=False):
        small = channel[:: HEIGHT // plane.height, :: WIDTH // plane.width].astype(kind)
        rows = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
        rows[:, : plane.width] = small
        plane.update(rows.tobytes()[: plane.buffer_size].ljust(plane.buffer_size, b"\0"))
    return frame


def write(path: Path, codec: str, frame: av.VideoFrame, count: int = 4, **tags: int) -> Path:
    """The same frame a few times; ``tags`` in FFmpeg's numbers."""
    options = {"crf": "4"} if codec in ("libx264", "libx265", "libvpx-vp9") else {}
    if codec == "libx265":
        options["x265-params"] = "log-level=none"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, frame.format.name
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number in range(count):
            for name, value in tags.items():
                if hasattr(frame, name):
                    setattr(frame, name, value)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(
    ("name", "codec", "layout", "bits"),
    [
        ("a.mp4", "libx264", "yuv420p", 8),
        ("a.mov", "libx264", "yuv444p10le", 10),
        ("a.mkv", "ffv1", "yuv422p10le", 10),
        ("a.mkv", "ffv1", "yuv444p16le", 16),
    ],
)
def test_yuv_is_read_by_its_matrix_and_range(
    tmp_path: Path, name: str, codec: str, layout: str, bits: int, matrix: str, full: bool
) -> None:
    values = to_yuv(COLOURS / 255, matrix, full, bits)
    tags = {"colorspace": MATRICES[matrix][0], "color_range": FULL if full else LIMITED}
    path = write(tmp_path / name, codec, yuv_frame(values, layout, bits), **tags)
    assert_colours(path)


@pytest.mark.parametrize("codec", ["libx265", "libvpx-vp9", "prores_ks", "mpeg4", "libx264"])
@pytest.mark.parametrize("matrix", ["untold", "bt709"])
def test_every_codec_keeps_its_colours(tmp_path: Path, codec: str, matrix: str) -> None:
    """Some store colour tags in the stream, some in the container only."""
    name = {"prores_ks": "a.mov", "libvpx-vp9": "a.webm"}.get(codec, "a.mkv")
    layout, bits = ("yuv422p10le", 10) if codec == "prores_ks" else ("yuv420p", 8)
    values = to_yuv(COLOURS / 255, matrix, False, bits)
    tags = {"colorspace": MATRICES[matrix][0], "color_range": LIMITED} if matrix == "bt709" else {}
    path = write(tmp_path / name, codec, yuv_frame(values, layout, bits), **tags)
    assert_colours(path, tolerance=6)


def test_motion_jpeg_has_full_range(tmp_path: Path) -> None:
    values = to_yuv(COLOURS / 255, "bt601", True, 8)
    assert_colours(write(tmp_path / "a.avi", "mjpeg", yuv_frame(values, "yuvj444p", 8)))


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [
        ("a.mkv", "ffv1", "bgr0"),
        ("a.mkv", "ffv1", "gbrp10le"),
        ("a.mp4", "libx264rgb", "rgb24"),
        ("a.mov", "png", "rgb24"),
        ("a.mov", "png", "rgb48be"),
        ("a.mov", "qtrle", "rgb24"),
        ("a.avi", "rawvideo", "bgr24"),
        ("a.gif", "gif", "rgb8"),
    ],
)
@pytest.mark.parametrize("tags", [{}, {"color_range": FULL}], ids=["untold", "full"])
def test_rgb_stays_unchanged(
    tmp_path: Path, name: str, codec: str, layout: str, tags: dict[str, int]
) -> None:
    picture = quarters(COLOURS)
    if layout == "rgb48be":
        frame = av.VideoFrame.from_ndarray((picture * 257).astype(np.uint16), layout)
    else:
        rgb = av.VideoFrame.from_ndarray(picture.astype(np.uint8), "rgb24")
        frame = rgb.reformat(format=layout)
    expected = COLOURS
    if layout == "rgb8":  # its palette has few colours
        expected = corners(torch.from_numpy(frame.to_ndarray(format="rgb24")))
    assert_colours(write(tmp_path / name, codec, frame, **tags), expected, tolerance=1.0)


@pytest.mark.parametrize("bits", [8, 16])
def test_untagged_grey_has_full_range(tmp_path: Path, bits: int) -> None:
    grey = np.array([[10, 80], [150, 240]], np.float64)[..., None].repeat(3, -1)
    layout = "gray" if bits == 8 else "gray16be"
    codec = "png"
    frame = av.VideoFrame.from_ndarray(quarters(grey)[..., 0].astype(np.uint8), "gray")
    if bits == 16:
        pixels = (quarters(grey)[..., 0] * 257).astype(">u2")
        frame = av.VideoFrame(WIDTH, HEIGHT, layout)
        rows = np.zeros((HEIGHT, frame.planes[0].line_size // 2), ">u2")
        rows[:, :WIDTH] = pixels
        frame.planes[0].update(rows.tobytes()[: frame.planes[0].buffer_size])
    assert_colours(write(tmp_path / "a.mov", codec, frame), grey, tolerance=1.0)


# --- HDR --------------------------------------------------------------------------------------


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def pq(light: np.ndarray) -> np.ndarray:
    """cd/m2 -> signal (SMPTE ST 2084)."""
    power = (light / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """cd/m2 on a display of 1000 -> signal (BT.2100)."""
    luminance = (light @ (0.2627, 0.6780, 0.0593))[..., None] / 1000
    scene = light / 1000 * luminance ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


@pytest.mark.parametrize(("kind", "number", "curve"), [("PQ", 16, pq), ("HLG", 18, hlg)])
@pytest.mark.parametrize("name", ["a.mov", "a.mkv"])
def test_hdr_is_tone_mapped_with_a_note(
    tmp_path: Path, kind: str, number: int, curve: object, name: str
) -> None:
    """Colours below reference white, 203 cd/m2, keep their look."""
    signal = curve(linear(COLOURS / 255) @ TO_2020.T * 203)
    values = to_yuv(signal, "bt2020", False, 10)
    tags = {"colorspace": 9, "color_range": LIMITED, "color_trc": number, "color_primaries": 9}
    path = write(tmp_path / name, "libx265", yuv_frame(values, "yuv420p10le", 10), **tags)
    assert_colours(path, tolerance=8)
    (warning,) = [text for text in load_clips([path], "", 4).warnings if "HDR" in text]
    assert name in warning and kind in warning


def test_highlights_keep_their_hue(tmp_path: Path) -> None:
    light = np.array([[(203, 203, 203), (900, 900, 900)], [(800, 200, 200), (0, 0, 0)]])
    values = to_yuv(pq(light.astype(np.float64)), "bt2020", False, 10)
    tags = {"colorspace": 9, "color_range": LIMITED, "color_trc": 16, "color_primaries": 1}
    path = write(tmp_path / "a.mov", "libx265", yuv_frame(values, "yuv444p10le", 10), **tags)
    (white, lamp), (red, black) = corners(read_frames(path, [1])[0])
    assert white.min() > 215 and lamp.min() > white.min() + 8
    assert red[0] > 225 and red[0] - red[1] > 60 and abs(red[1] - red[2]) < 6
    assert black.max() < 4


# Linear BT.709 -> Display P3 (SMPTE EG 432-1).
TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])


@pytest.mark.parametrize(("number", "matrix"), [(1, np.eye(3)), (9, TO_2020), (12, TO_P3)])
@pytest.mark.parametrize("pixels", ["yuv420p", "bgr0"])
def test_wide_gamuts_without_hdr_keep_their_colours(
    tmp_path: Path, number: int, matrix: np.ndarray, pixels: str
) -> None:
    """As Apple's screen recordings have them."""
    light = linear(COLOURS / 255) @ matrix.T
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    tags = {"color_trc": 1, "color_primaries": number}
    coded = {"colorspace": 1, "color_range": LIMITED}
    if pixels == "bgr0":
        frame = av.VideoFrame.from_ndarray(quarters(signal * 255).round().astype(np.uint8), "rgb24")
        path = write(tmp_path / "a.mkv", "ffv1", frame.reformat(format="bgr0"), **tags)
    else:
        frame = yuv_frame(to_yuv(signal, "bt709", False, 8), "yuv420p", 8)
        path = write(tmp_path / "a.mov", "libx264", frame, **coded, **tags)
    assert_colours(path, tolerance=5)
