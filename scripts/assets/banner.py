"""Draw the pack's banner for the ComfyUI registry: `python -m scripts.assets.banner`."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

from scripts.server.host import ROOT

FILE = ROOT / "docs" / "images" / "banner.png"
SIZE = (1260, 540)  # 21:9, as the registry asks
_SCALE = 3  # drawn larger and made smaller, for smooth edges
_NIGHT, _STRIPE = (24, 32, 74), (30, 40, 88)
_TRAIL, _STAR, _INK = (70, 62, 80), (246, 212, 60), (240, 240, 245)
_COUNT = 7


def star(centre: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """The ten corners of a star that stands on two of them."""
    corners = []
    for number in range(10):
        angle = -math.pi / 2 + number * math.pi / 5
        reach = radius if number % 2 == 0 else 0.45 * radius
        corners.append((centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle)))
    return corners


def draw() -> Image.Image:
    width, height = (side * _SCALE for side in SIZE)
    page = Image.new("RGB", (width, height), _NIGHT)
    pen = ImageDraw.Draw(page)
    stripe = height // 9
    for top in range(0, height, 2 * stripe):
        pen.rectangle((0, top, width, top + stripe), fill=_STRIPE)
    for number in range(_COUNT):
        share = number / (_COUNT - 1)
        colour = tuple(round(a + (b - a) * share**2) for a, b in zip(_TRAIL, _STAR, strict=True))
        # One jump: the way of a thing that is thrown.
        x = width * (0.08 + 0.84 * share)
        y = height * (0.62 - 1.28 * share * (1 - share))
        pen.polygon(star((x, y), height * 0.13), fill=colour)
    _write(pen, "LAMP Motion", 0.72, 0.125)
    _write(pen, "few clips in, one motion out: for any first frame", 0.87, 0.058)
    return page.resize(SIZE, Image.Resampling.LANCZOS)


def _write(pen: ImageDraw.ImageDraw, text: str, middle: float, height: float) -> None:
    font = ImageFont.load_default(size=SIZE[1] * _SCALE * height)
    place = SIZE[0] * _SCALE / 2, SIZE[1] * _SCALE * middle
    pen.text(place, text, fill=_INK, font=font, anchor="mm")


def main() -> None:
    draw().quantize(64, dither=Image.Dither.NONE).save(FILE, optimize=True)
    print(FILE.relative_to(ROOT))


if __name__ == "__main__":
    main()
