"""A supersampled picture with a mask of what moves, and the looks a picture can have.

Coordinates are pixels of the finished 64x64 picture, y down; colours are RGB bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 64
FINE = 4  # subpixels along each side of a pixel
LOOKS = ("filled", "outline", "shaded", "pixel", "night")

Colour = tuple[int, int, int]
Points = Sequence[tuple[float, float]] | NDArray[np.float64]
INK: Colour = (24, 22, 34)
PIXEL_BLOCK = 2  # side of a block of the look 'pixel', in pixels
RIM = 1.0  # width of an outline


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """The colour at ``share`` of the way from one colour to another."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one, other, strict=True))  # type: ignore[return-value]


class Canvas:
    """Draws parts in one look.

    While ``subject`` is set, parts get the look's outlines and shading; while ``moving`` is set,
    they enter the mask, or are left out of a canvas that ``hides`` them. A landscape has neither.
    """

    def __init__(self, look: str, hides: bool = False) -> None:
        side = SIZE * FINE
        self.look, self.hides = look, hides
        self.picture = Image.new("RGB", (side, side))
        self.mask, self.body = Image.new("L", (side, side)), Image.new("L", (side, side))
        self.pen = ImageDraw.Draw(self.picture)
        self._mask_pen, self._body_pen = ImageDraw.Draw(self.mask), ImageDraw.Draw(self.body)
        self.moving = self.subject = False

    def gradient(self, top: Colour, bottom: Colour, start: float = 0.0, end: float = SIZE) -> None:
        """A vertical gradient over the rows ``start`` to ``end``."""
        strip = Image.new("RGB", (1, 2))
        strip.putdata([top, bottom])
        size = (SIZE * FINE, max(1, round((end - start) * FINE)))
        # The two rows are the ends, not the middles of two halves: hence the box.
        box = (0.0, 0.5, 1.0, 1.5)
        filled = strip.resize(size, Image.Resampling.BILINEAR, box=box)
        self.picture.paste(filled, (0, round(start * FINE)))

    def polygon(self, points: Points, colour: Colour) -> None:
        if self.moving and self.hides:
            return
        fine = [(float(x) * FINE, float(y) * FINE) for x, y in points]
        if self._outlined:
            self.pen.line([*fine, fine[0], fine[1]], INK, round(2 * RIM * FINE), joint="curve")
        self.pen.polygon(fine, colour)
        for pen in self._masks():
            pen.polygon(fine, 255)

    def line(self, points: Points, width: float, colour: Colour) -> None:
        """A polyline with round caps and joints."""
        if self.moving and self.hides:
            return
        if self._outlined:
            self._stroke(self.pen, points, width + 2 * RIM, INK)
        self._stroke(self.pen, points, width, colour)
        for pen in self._masks():
            self._stroke(pen, points, width, 255)

    def _stroke(
        self, pen: ImageDraw.ImageDraw, points: Points, width: float, fill: Colour | int
    ) -> None:
        fine = [(float(x) * FINE, float(y) * FINE) for x, y in points]
        pen.line(fine, fill, max(1, round(width * FINE)), joint="curve")
        radius = width * FINE / 2
        for x, y in (fine[0], fine[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        if self.moving and self.hides:
            return

        def box(grow: float) -> tuple[float, float, float, float]:
            left, top, right, bottom = x - rx - grow, y - ry - grow, x + rx + grow, y + ry + grow
            return (left * FINE, top * FINE, right * FINE, bottom * FINE)

        if self._outlined:
            self.pen.ellipse(box(RIM), INK)
        self.pen.ellipse(box(0.0), colour)
        for pen in self._masks():
            pen.ellipse(box(0.0), 255)

    def dot(self, centre: NDArray[np.float64], radius: float, colour: Colour) -> None:
        self.ellipse(float(centre[0]), float(centre[1]), radius, radius, colour)

    def _masks(self) -> list[ImageDraw.ImageDraw]:
        return [self._mask_pen] * self.moving + [self._body_pen] * self.subject

    @property
    def _outlined(self) -> bool:
        return self.subject and self.look == "outline"

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The picture (64, 64, 3) as bytes and the mask's coverage (64, 64) in 0..1."""
        if self.look == "shaded":
            self.picture = shaded(self.picture, self.body)
        if self.look == "pixel":
            return blocks(self.picture, self.mask)
        cover = np.asarray(self.mask.reduce(FINE), dtype=np.float32) / 255.0
        return np.asarray(self.picture.reduce(FINE)), cover


def shaded(picture: Image.Image, body: Image.Image) -> Image.Image:
    """Light from the upper left on the parts in the mask ``body``, as on a relief."""
    soft = body.reduce(FINE).filter(ImageFilter.GaussianBlur(2.2))
    height = np.asarray(soft, dtype=np.float32) / 255.0
    slope = np.roll(height, (-2, -2), (0, 1)) - np.roll(height, (2, 2), (0, 1))
    light = Image.fromarray(np.uint8(np.clip(128 + 150 * slope, 40, 230)))
    light = light.resize(picture.size, Image.Resampling.BILINEAR)
    lit = ImageChops.overlay(picture, Image.merge("RGB", (light,) * 3))
    return Image.composite(lit, picture, body)


def blocks(
    picture: Image.Image, mask: Image.Image
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Blocks of pixels with few brightness levels, as in old games."""
    factor = FINE * PIXEL_BLOCK
    coarse = np.asarray(picture.reduce(factor), dtype=np.float32)
    coarse = np.clip(np.rint(coarse / 36.0) * 36.0, 0, 255).astype(np.uint8)
    cover = np.asarray(mask.reduce(factor), dtype=np.float32) / 255.0
    double = lambda a: a.repeat(PIXEL_BLOCK, 0).repeat(PIXEL_BLOCK, 1)  # noqa: E731
    return double(coarse), double(cover)
