"""Decoded frames as pictures: colours, transparency, crop, and which side is up."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .containers import Crop
from .hdr import HLG, PQ, rgb_of, to_sdr
from .pictures import on_black
from .reader import Told

if TYPE_CHECKING:
    import av
    from numpy.typing import NDArray

_STRIP = 2**20  # pixels whose colours are computed at a time
_UNTOLD = 2  # FFmpeg's number of a matrix, a transfer function, primaries that are not told
_LIMITED, _FULL = 1, 2
# FFmpeg's number of a matrix (ITU-T H.273) -> swscale's number of its coefficients.
_BT601 = 5
_COEFFICIENTS = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_STRANGE = {8: "YCgCo", 11: "Y'D'zD'x", 14: "ICtCp", 15: "IPT-C2", 16: "YCgCo-Re", 17: "YCgCo-Ro"}


@dataclass(frozen=True)
class Tags:
    """What is told of the colours of a frame, in FFmpeg's numbers."""

    matrix: int
    full_range: bool
    transfer: int
    primaries: int

    @classmethod
    def of(cls, frame: av.VideoFrame, stream: Any) -> Tags:
        """The frame's own; of what it does not tell, the container's."""
        about = stream.codec_context
        matrix, levels = int(frame.colorspace), int(frame.color_range)
        transfer = int(getattr(frame, "color_trc", _UNTOLD))
        primaries = int(getattr(frame, "color_primaries", _UNTOLD))
        return cls(
            int(about.colorspace) if matrix == _UNTOLD else matrix,
            _full_range(frame.format.name, levels or int(about.color_range)),
            int(about.color_trc) if transfer == _UNTOLD else transfer,
            int(about.color_primaries) if primaries == _UNTOLD else primaries,
        )


def _full_range(layout: str, told: int) -> bool:
    """Grey is of full range where nothing is told, other YUV is not; `yuvj` by its name is."""
    grey = _is_grey(layout)
    return layout.startswith("yuvj") or told == _FULL or (grey and told != _LIMITED)


def _is_grey(layout: str) -> bool:
    return layout.startswith(("gray", "ya8", "ya16"))


def _expanded(pixels: NDArray[Any]) -> NDArray[Any]:
    """``h w c`` uint8 of limited range to full range, an alpha channel left as it is."""
    levels = ((np.arange(256) - 16) * (255 / 219)).round().clip(0, 255).astype(np.uint8)
    out = pixels.copy()
    out[..., :3] = levels[pixels[..., :3]]
    return out


@dataclass
class Decoded:
    """A decoded frame, when it is shown (seconds) and for how long if that is told, its colours,
    and how it is turned (see `display_matrix`)."""

    time: float | None
    frame: av.VideoFrame
    held: float | None
    tags: Tags
    matrix: tuple[int, ...] | None


class Painter:
    """Turns the frames of one stream into pictures; of colours not told BT.601 in limited range is
    assumed, as FFmpeg does.

    ``aspect`` is the width of a pixel by its height. Notes go to ``told``.
    """

    def __init__(self, stream: av.VideoStream, aspect: float, crop: Crop, told: Told) -> None:
        from av.video.reformatter import VideoReformatter

        self._stream, self._aspect, self._crop, self._told = stream, aspect, crop, told
        self._reformatter = VideoReformatter()
        self._turns: dict[int, tuple[int, ...] | None] = {}

    def tags(self, frame: av.VideoFrame) -> Tags:
        """The frame's colours as told, with a note where they cannot be kept as they are."""
        tags = Tags.of(frame, self._stream)
        yuv = _is_yuv(frame.format)
        if tags.transfer in (PQ, HLG):
            kind = "PQ" if tags.transfer == PQ else "HLG"
            how = "its colours were brought to SDR by tone mapping. If they look wrong"
            if not yuv or _has_alpha(frame.format):
                how = "RGB and transparency are read as if they were SDR. As the colours look wrong"
            self._told.note(
                f"is HDR ({kind}): {how} in the contact sheet, convert the clip to SDR."
            )
        if yuv:
            if tags.matrix in _STRANGE:
                self._told.note(
                    f"has colours in {_STRANGE[tags.matrix]}, which are read as BT.601. If they "
                    "look wrong in the contact sheet, convert the clip to BT.709."
                )
        return tags

    def turned(self, frame: av.VideoFrame) -> tuple[int, ...] | None:
        """How the frame is to be turned and mirrored, see `display_matrix`."""
        # Asked for once for each angle: a frame that was asked holds on to itself.
        if frame.rotation not in self._turns:
            self._turns[frame.rotation] = display_matrix(frame)
        return self._turns[frame.rotation]

    def paint(self, each: Decoded) -> Tensor:
        """``h w 3`` uint8: square pixels, on black, upright."""
        frame, tags, crop = each.frame, each.tags, self._crop
        width = max(round(frame.width * self._aspect), 1)
        hdr = tags.transfer in (PQ, HLG) and _is_yuv(frame.format)
        if bright := hdr and not _has_alpha(frame.format):
            # Without colours first: to RGB of 16 bits some PyAVs do it wrongly.
            kind, told = "yuv444p16le", _untouched(frame)
        else:
            kind = "rgba" if _has_alpha(frame.format) else "rgb24"
            told = _for_swscale(frame, tags)
        shown = self._reformatter.reformat(frame, width, frame.height, kind, **told)
        pixels: NDArray[Any] = shown.to_ndarray()
        left, right = (round(side * self._aspect) for side in (crop.left, crop.right))
        pixels = pixels[crop.top : frame.height - crop.bottom, left : width - right]
        if bright:
            pixels = pixels.astype(np.int32)  # PyTorch knows little of unsigned 16 bits
        elif _is_grey(frame.format.name) and not tags.full_range:
            pixels = _expanded(pixels)  # swscale takes every grey for one of full range
        picture = torch.from_numpy(_upright(pixels, each.matrix))
        return _from_hdr(picture, tags) if bright else on_black(picture)


def _from_hdr(picture: Tensor, tags: Tags) -> Tensor:
    """``h w 3`` int32 of 16 bits, Y Cb Cr -> ``h w 3`` uint8; some rows at a time."""
    out = torch.empty(picture.shape, dtype=torch.uint8)
    rows = max(_STRIP // picture.shape[1], 1)
    for into, part in zip(out.split(rows), picture.split(rows), strict=True):
        rgb = rgb_of(part.float() / 65535, tags.full_range, tags.matrix)
        into.copy_((to_sdr(rgb, tags.transfer, tags.primaries) * 255).round())
    return out


def _is_yuv(layout: av.VideoFormat) -> bool:
    return not (layout.is_rgb or layout.has_palette or layout.name.startswith(("xyz", "bayer")))


def _has_alpha(layout: av.VideoFormat) -> bool:
    return layout.has_palette or any(component.is_alpha for component in layout.components)


def _for_swscale(frame: av.VideoFrame, tags: Tags) -> dict[str, Any]:
    """What `reformat` has to be told. Older ones of PyAV look at no tag by themselves, newer ones
    at the frame's; and neither wants to be told anything of RGB."""
    # Some of them refuse transfer functions and primaries that they do not know.
    for name in ("color_trc", "color_primaries"):
        if hasattr(frame, name):
            setattr(frame, name, _UNTOLD)
    if not _is_yuv(frame.format):
        return {}
    coefficients = _COEFFICIENTS.get(tags.matrix, _BT601)
    frame.colorspace = tags.matrix if tags.matrix in _COEFFICIENTS else _BT601
    frame.color_range = _FULL if tags.full_range else _LIMITED
    return {
        "src_colorspace": coefficients,
        # Means nothing for RGB, but the older ones take no notice of two that are the same.
        "dst_colorspace": 1 if coefficients == _BT601 else _BT601,
        "src_color_range": _FULL if tags.full_range else _LIMITED,
        "dst_color_range": _FULL,
    }


def _untouched(frame: av.VideoFrame) -> dict[str, Any]:
    """What `reformat` has to be told to leave the colours of YUV as they are."""
    frame.colorspace, frame.color_range = _BT601, _LIMITED
    return {
        "src_colorspace": _BT601,
        "dst_colorspace": _BT601,
        "src_color_range": _LIMITED,
        "dst_color_range": _LIMITED,
    }


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """How a frame is to be turned and mirrored: a, b, c, d, with which a pixel at (x, y) is shown
    at (a x + c y, b x + d y); None: as it is."""
    try:
        part: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # Beside it lies something that this PyAV has no name for, such as EXIF.
        return _rotated(frame.rotation)
    if part is None:
        return None
    numbers = struct.unpack("=9i", bytes(part)[:36])
    return numbers[0], numbers[1], numbers[3], numbers[4]


def _rotated(degrees: float) -> tuple[int, ...] | None:
    """The display matrix of a turn, counter-clockwise as PyAV tells it."""
    angle = math.radians(-degrees)
    right, down = round(math.cos(angle)), round(math.sin(angle))
    return (right, down, -down, right) if degrees else None


def _upright(pixels: NDArray[Any], matrix: tuple[int, ...] | None) -> NDArray[Any]:
    """By the nearest of the eight ways in which a picture can be turned and mirrored."""
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
