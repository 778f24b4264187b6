"""Convert decoded frames to pictures: colours, transparency, crop and rotation."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .containers import Crop
from .hdr import HLG, PQ, WIDE, rgb_of, to_sdr, to_srgb
from .pictures import on_black
from .reader import ClipFacts

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

_STRIP = 2**20  # pixels converted at a time
_UNSPECIFIED = 2  # FFmpeg's number, for matrix, transfer and primaries
_LIMITED, _FULL = 1, 2
# FFmpeg's number of a matrix (ITU-T H.273) -> swscale's number of its coefficients.
_BT601 = 5
_COEFFICIENTS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_UNSUPPORTED = {
    8: "YCgCo", 11: "Y'D'zD'x", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip


@dataclass(frozen=True)
class Tags:
    """The colour tags of a frame, as FFmpeg's numbers."""

    matrix: int
    full_range: bool
    transfer: int
    primaries: int

    @classmethod
    def of(cls, frame: av.VideoFrame, stream: Any) -> Tags:
        """The frame's own tags, or the container's where unspecified."""
        about = stream.codec_context
        matrix, levels = int(frame.colorspace), int(frame.color_range)
        transfer = int(getattr(frame, "color_trc", _UNSPECIFIED))
        primaries = int(getattr(frame, "color_primaries", _UNSPECIFIED))
        return cls(
            int(about.colorspace) if matrix == _UNSPECIFIED else matrix,
            _full_range(frame.format.name, levels or int(about.color_range)),
            int(about.color_trc) if transfer == _UNSPECIFIED else transfer,
            int(about.color_primaries) if primaries == _UNSPECIFIED else primaries,
        )


def _full_range(layout: str, tag: int) -> bool:
    """By default, grey and `yuvj` have full range, other YUV has limited range."""
    grey = _is_grey(layout)
    return layout.startswith("yuvj") or tag == _FULL or (grey and tag != _LIMITED)


def _is_grey(layout: str) -> bool:
    return layout.startswith(("gray", "ya8", "ya16"))


def _expanded(pixels: NDArray[Any]) -> NDArray[Any]:
    """``h w c`` uint8 from limited to full range, without changing an alpha channel."""
    levels = ((np.arange(256) - 16) * (255 / 219)).round().clip(0, 255).astype(np.uint8)
    out = pixels.copy()
    out[..., :3] = levels[pixels[..., :3]]
    return out


@dataclass
class Decoded:
    """A decoded frame, its display time and (if stated) duration in seconds, its colour tags, and
    its rotation (see `display_matrix`)."""

    time: float | None
    frame: av.VideoFrame
    held: float | None
    tags: Tags
    matrix: tuple[int, ...] | None


class Painter:
    """Converts the frames of one stream to pictures. Unspecified colours count as BT.601 in limited
    range, as in FFmpeg.

    ``aspect`` is a pixel's width / height. Notes go to ``facts``.
    """

    def __init__(self, stream: av.VideoStream, aspect: float, crop: Crop, facts: ClipFacts) -> None:
        from av.video.reformatter import VideoReformatter

        self._stream, self._aspect, self._crop, self._facts = stream, aspect, crop, facts
        self._reformatter = VideoReformatter()
        self._turns: dict[int, tuple[int, ...] | None] = {}

    def tags(self, frame: av.VideoFrame) -> Tags:
        """The frame's colour tags, with a note where colours are converted or unsupported."""
        tags = Tags.of(frame, self._stream)
        yuv = _is_yuv(frame.format)
        if tags.transfer in (PQ, HLG):
            kind = "PQ" if tags.transfer == PQ else "HLG"
            how = "its colours were tone-mapped to SDR. If they look wrong"
            if not yuv or _has_alpha(frame.format):
                how = "RGB and transparency are read as SDR. If the colours look wrong"
            self._facts.note(
                f"is HDR ({kind}): {how} in the contact sheet, convert the clip to SDR."
            )
        if yuv:
            if tags.matrix in _UNSUPPORTED:
                self._facts.note(
                    f"has colours in {_UNSUPPORTED[tags.matrix]}, which are read as BT.601. If "
                    "they look wrong in the contact sheet, convert the clip to BT.709."
                )
        return tags

    def turned(self, frame: av.VideoFrame) -> tuple[int, ...] | None:
        """The rotation and mirroring of a frame, see `display_matrix`."""
        # Once per angle, because reading side data leaks the frame.
        if frame.rotation not in self._turns:
            self._turns[frame.rotation] = display_matrix(frame)
        return self._turns[frame.rotation]

    def paint(self, each: Decoded) -> Tensor:
        """``h w 3`` uint8: square pixels, over black, upright."""
        frame, tags, crop = each.frame, each.tags, self._crop
        width = max(round(frame.width * self._aspect), 1)
        hdr = tags.transfer in (PQ, HLG) and _is_yuv(frame.format)
        if bright := hdr and not _has_alpha(frame.format):
            # As YUV, because some PyAV versions convert to 16-bit RGB incorrectly.
            kind, options = "yuv444p16le", _untouched(frame)
        else:
            kind = "rgba" if _has_alpha(frame.format) else "rgb24"
            options = _for_swscale(frame, tags)
        shown = self._reformatter.reformat(frame, width, frame.height, kind, **options)
        pixels: NDArray[Any] = shown.to_ndarray()
        left, right = (round(side * self._aspect) for side in (crop.left, crop.right))
        pixels = pixels[crop.top : frame.height - crop.bottom, left : width - right]
        if bright:
            pixels = pixels.astype(np.int32)  # PyTorch has few operations for unsigned 16 bits
        elif _is_grey(frame.format.name) and not tags.full_range:
            pixels = _expanded(pixels)  # swscale treats all grey as full range
        picture = torch.from_numpy(_upright(pixels, each.matrix))
        if bright:
            return _by_strips(picture, partial(_from_hdr, tags=tags))
        picture = on_black(picture)
        if tags.primaries in WIDE and tags.transfer not in (PQ, HLG):
            return _by_strips(picture, partial(to_srgb, primaries=tags.primaries))
        return picture


def _by_strips(picture: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """``h w 3`` -> ``h w 3`` uint8, some rows at a time."""
    out = torch.empty(picture.shape, dtype=torch.uint8)
    rows = max(_STRIP // picture.shape[1], 1)
    for into, part in zip(out.split(rows), picture.split(rows), strict=True):
        into.copy_(convert(part))
    return out


def _from_hdr(part: Tensor, tags: Tags) -> Tensor:
    """``h w 3`` int32 with 16-bit Y Cb Cr -> ``h w 3`` in 0..255."""
    rgb = rgb_of(part.float() / 65535, tags.full_range, tags.matrix)
    return (to_sdr(rgb, tags.transfer, tags.primaries) * 255).round()


def _is_yuv(layout: av.VideoFormat) -> bool:
    return not (layout.is_rgb or layout.has_palette or layout.name.startswith(("xyz", "bayer")))


def _has_alpha(layout: av.VideoFormat) -> bool:
    return layout.has_palette or any(component.is_alpha for component in layout.components)


def _for_swscale(frame: av.VideoFrame, tags: Tags) -> dict[str, Any]:
    """Arguments for `reformat`. Old versions of PyAV ignore a frame's tags, new ones read them, and
    neither takes arguments for RGB."""
    # Some versions refuse unknown transfer functions and primaries.
    for name in ("color_trc", "color_primaries"):
        if hasattr(frame, name):
            setattr(frame, name, _UNSPECIFIED)
    if not _is_yuv(frame.format):
        return {}
    coefficients = _COEFFICIENTS.get(tags.matrix, _BT601)
    frame.colorspace = tags.matrix if tags.matrix in _COEFFICIENTS else _BT601
    frame.color_range = _FULL if tags.full_range else _LIMITED
    return {
        "src_colorspace": coefficients,
        # Irrelevant for RGB, but old versions ignore the arguments if both are equal.
        "dst_colorspace": 1 if coefficients == _BT601 else _BT601,
        "src_color_range": _FULL if tags.full_range else _LIMITED,
        "dst_color_range": _FULL,
    }


def _untouched(frame: av.VideoFrame) -> dict[str, Any]:
    """Arguments for `reformat` that keep YUV values unchanged."""
    frame.colorspace, frame.color_range = _BT601, _LIMITED
    return {
        "src_colorspace": _BT601,
        "dst_colorspace": _BT601,
        "src_color_range": _LIMITED,
        "dst_color_range": _LIMITED,
    }


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """Rotation and mirroring of a frame as a, b, c, d: a pixel at (x, y) is displayed at
    (a x + c y, b x + d y). None: unchanged."""
    try:
        part: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # This PyAV version does not know other side data of the frame, such as EXIF.
        return _rotated(frame.rotation)
    if part is None:
        return None
    numbers = struct.unpack("=9i", bytes(part)[:36])
    return numbers[0], numbers[1], numbers[3], numbers[4]


def _rotated(degrees: float) -> tuple[int, ...] | None:
    """The display matrix of a rotation, counter-clockwise as in PyAV."""
    angle = math.radians(-degrees)
    right, down = round(math.cos(angle)), round(math.sin(angle))
    return (right, down, -down, right) if degrees else None


def _upright(pixels: NDArray[Any], matrix: tuple[int, ...] | None) -> NDArray[Any]:
    """Apply the nearest of the eight rotations and mirrorings."""
    if matrix is not None and any(matrix):
        a, b, c, d = matrix
        if abs(b) + abs(c) > abs(a) + abs(d):  # x becomes y
            pixels = pixels.swapaxes(0, 1)
            right, down = c, b
        else:
            right, down = a, d
        if right < 0:
            pixels = pixels[:, ::-1]
        if down < 0:
            pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
