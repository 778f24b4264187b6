"""Distorted copies of training clips: the same motion turned, larger or smaller, and elsewhere.

A motion that is learned from few subjects depends less on where they are and how they look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .settings import ClipSettings

_CLIPS = 2**20  # more than there are clips


@dataclass(frozen=True)
class Warp:
    """A distortion that all frames of a copy share, around the centre of the picture.

    - ``angle`` in radians, clockwise; ``scale``: above 1 enlarges;
    - ``right``, ``down``: shares of the picture's width and height;
    - ``mirrored``: left and right are swapped first.
    """

    angle: float
    scale: float
    right: float
    down: float
    mirrored: bool


def draw_warp(settings: ClipSettings, clip: int, copy: int) -> Warp:
    """The distortion of a clip's copy (from 1), within the limits of the settings. The same
    settings and numbers always give the same one."""
    generator = torch.Generator().manual_seed(copy * _CLIPS + clip)
    angle, scale, right, down, mirror = (2 * torch.rand(5, generator=generator) - 1).tolist()
    return Warp(
        math.radians(settings.turn) * angle,
        (1 + settings.zoom) ** scale,
        settings.shift * right,
        settings.shift * down,
        settings.flip and mirror < 0,
    )


def warped(picture: Tensor, warp: Warp) -> Tensor:
    """A picture ``h w 3`` of bytes, distorted. What comes in from outside is its reflection."""
    height, width = picture.shape[:2]
    cos, sin = math.cos(warp.angle) / warp.scale, math.sin(warp.angle) / warp.scale
    side = -1.0 if warp.mirrored else 1.0
    # From a place in the result to the one in the picture, in halves of its sides.
    rows = [[cos, sin * height / width], [-sin * width / height, cos]]
    moved = [2 * warp.right, 2 * warp.down]
    back = [-(a * moved[0] + b * moved[1]) for a, b in rows]
    matrix = [[*row, shift] for row, shift in zip(rows, back, strict=True)]
    matrix[0] = [side * value for value in matrix[0]]
    grid = F.affine_grid(torch.tensor([matrix]), [1, 3, height, width], align_corners=False)
    image = picture.movedim(-1, 0)[None].float()
    found = F.grid_sample(image, grid, "bicubic", "reflection", align_corners=False)
    return found[0].movedim(0, -1).round().clamp(0, 255).to(torch.uint8)
