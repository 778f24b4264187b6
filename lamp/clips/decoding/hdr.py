"""From HDR (PQ and HLG of BT.2100) and wide gamuts to sRGB, which has the primaries of BT.709."""

from __future__ import annotations

import torch
from torch import Tensor

PQ, HLG = 16, 18
"""FFmpeg's numbers of the two transfer functions (ITU-T H.273)."""
WHITE = 203.0
"""cd/m2 of reference white in HDR (BT.2408)."""
PEAK = 1000.0
"""cd/m2 that map to full white: the mastering peak of most HDR films."""
_KNEE = 0.75  # of white; darker values are unchanged

# Linear RGB of other primaries -> of BT.709, white D65; by FFmpeg's number of the primaries.
WIDE = (9, 12)
"""FFmpeg's numbers of the primaries of BT.2020 and Display P3."""
_TO_709 = {
    9: (  # BT.2020 (BT.2087)
        (1.6605, -0.5876, -0.0728),
        (-0.1246, 1.1329, -0.0083),
        (-0.0182, -0.1006, 1.1187),
    ),
    12: (  # Display P3
        (1.2249, -0.2247, 0.0),
        (-0.0420, 1.0419, 0.0),
        (-0.0197, -0.0786, 1.0979),
    ),
}


_LUMA = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
"""Kr and Kb by FFmpeg's number of the matrix."""


def rgb_of(picture: Tensor, full_range: bool, matrix: int) -> Tensor:
    """``h w 3`` of Y Cb Cr in 0..1 as coded -> R G B, about 0..1 (H.273; by default BT.2020)."""
    red, blue = _LUMA.get(matrix, _LUMA[9])
    luma, cb, cr = picture.unbind(-1)
    # 16-bit values are the 8-bit ones, shifted by a byte.
    step = 256 / 65535
    if full_range:
        cb, cr = (cb - 128 * step), (cr - 128 * step)
    else:
        luma = (luma - 16 * step) / (219 * step)
        cb, cr = (cb - 128 * step) / (224 * step), (cr - 128 * step) / (224 * step)
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return torch.stack([r, g, b], -1)


def to_sdr(picture: Tensor, transfer: int, primaries: int) -> Tensor:
    """``h w 3`` in 0..1 as coded -> ``h w 3`` in 0..1, sRGB.

    Brighter values than the knee are compressed, by one factor for all three channels, so that they
    keep their hue. Unspecified primaries count as BT.2020.
    """
    light = (_pq_light(picture) if transfer == PQ else _hlg_light(picture)) / WHITE
    light = _rolled_off(light)
    if primaries != 1:
        light = light @ _matrix(primaries).T
    return _coded(light)


def to_srgb(picture: Tensor, primaries: int) -> Tensor:
    """``h w 3`` uint8 in SDR with wide primaries -> ``h w 3`` uint8, sRGB. Colours outside its
    gamut are clipped."""
    coded = torch.arange(256) / 255
    light = torch.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    return (_coded(light[picture.int()] @ _matrix(primaries).T) * 255).round().byte()


def _matrix(primaries: int) -> Tensor:
    return torch.tensor(_TO_709.get(primaries, _TO_709[9]))


def _coded(light: Tensor) -> Tensor:
    """Linear -> sRGB's curve, in 0..1."""
    light = light.clamp(0.0, 1.0)
    curve = 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, curve)


def _pq_light(signal: Tensor) -> Tensor:
    """Signal of 0..1 -> cd/m2 (SMPTE ST 2084)."""
    power = signal.clamp(0.0, 1.0) ** (1 / 78.84375)
    top, bottom = (power - 0.8359375).clamp(min=0.0), 18.8515625 - 18.6875 * power
    return 10_000.0 * (top / bottom) ** (1 / 0.1593017578125)


def _hlg_light(signal: Tensor) -> Tensor:
    """Signal of 0..1 -> cd/m2 on a display of 1000 cd/m2 (BT.2100)."""
    signal = signal.clamp(0.0, 1.0)
    upper = (torch.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    scene = torch.where(signal <= 0.5, signal**2 / 3, upper)
    luminance = scene @ torch.tensor([0.2627, 0.6780, 0.0593], dtype=scene.dtype)
    return PEAK * scene * luminance[..., None].clamp(min=1e-6) ** 0.2


def _rolled_off(light: Tensor) -> Tensor:
    """1 is reference white. Values above the knee are compressed so that the peak becomes 1."""
    most = light.amax(-1, keepdim=True).clamp(min=1e-6)
    room, peak = 1 - _KNEE, (PEAK / WHITE - _KNEE) / (1 - _KNEE)
    above = (most - _KNEE) / room
    bent = _KNEE + room * above * (1 + above / peak**2) / (1 + above)
    return light * torch.where(above > 0, bent.clamp(max=1.0) / most, torch.ones_like(most))
