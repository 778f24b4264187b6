"""Landscapes: sky, sun or moon, and one of six places, in four lights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import SIZE, Canvas, Colour, mix

PLACES = ("hills", "sea", "desert", "forest", "mountains", "city")
TIMES = ("noon", "sunset", "dusk", "night")


@dataclass(frozen=True)
class Light:
    """Colours of a time of day: sky, sun or moon, and the tint that everything takes on."""

    top: Colour
    bottom: Colour
    disc: Colour
    tint: Colour
    strength: float  # share of the tint in far things; near things take half


LIGHTS: dict[str, Light] = {
    "noon": Light((84, 160, 235), (198, 230, 250), (255, 246, 190), (190, 222, 246), 0.35),
    "sunset": Light((118, 92, 168), (255, 176, 92), (255, 226, 120), (246, 140, 92), 0.45),
    "dusk": Light((54, 60, 128), (226, 142, 168), (255, 206, 190), (112, 84, 150), 0.55),
    "night": Light((10, 14, 44), (40, 56, 112), (246, 244, 214), (22, 34, 84), 0.72),
}
OVERCAST: Colour = (112, 124, 142)
GROUNDS: dict[str, tuple[Colour, Colour]] = {  # far, near
    "hills": ((120, 172, 92), (84, 150, 62)),
    "sea": ((60, 136, 190), (36, 104, 166)),
    "desert": ((226, 186, 118), (208, 158, 88)),
    "forest": ((66, 122, 82), (60, 110, 52)),
    "mountains": ((132, 140, 168), (112, 148, 104)),
    "city": ((104, 108, 134), (92, 96, 104)),
}


def under(light: Light, colour: Colour, share: float) -> Colour:
    return mix(colour, light.tint, light.strength * share)


def horizon(detail: np.random.Generator) -> float:
    return float(detail.uniform(41.0, 46.0))


def draw_landscape(
    canvas: Canvas, place: str, time: str, detail: np.random.Generator, wet: bool = False
) -> None:
    """Sky, far and near ground. ``wet``: an overcast sky without sun, for rain."""
    light, level = LIGHTS[time], horizon(detail)
    grey = 0.55 if wet else 0.0
    cloudy = mix(OVERCAST, light.top, 0.5)
    canvas.gradient(mix(light.top, cloudy, grey), mix(light.bottom, cloudy, grey), 0.0, level + 4.0)
    sun = (float(detail.uniform(8.0, 56.0)), float(detail.uniform(0.18, 0.42)) * level)
    if time in ("sunset", "dusk"):
        sun = (sun[0], level - 3.0)
    if not wet:
        if time == "night":
            _stars(canvas, detail, level)
        _disc(canvas, light, *sun)
    far, near = (
        under(light, colour, share)
        for colour, share in zip(GROUNDS[place], (1.0, 0.5), strict=True)
    )
    _PLACES[place](canvas, light, far, near, level, detail)
    if place == "sea" and not wet:
        _reflection(canvas, light, near, sun[0], level)


def _disc(canvas: Canvas, light: Light, x: float, y: float) -> None:
    canvas.ellipse(x, y, 6.5, 6.5, mix(light.disc, light.bottom, 0.65))
    canvas.ellipse(x, y, 4.6, 4.6, light.disc)


def _stars(canvas: Canvas, detail: np.random.Generator, level: float) -> None:
    for x, y in detail.uniform((2, 2), (62, level - 8), size=(9, 2)):
        canvas.ellipse(x, y, 0.55, 0.55, (236, 236, 220))


def _ridge(
    canvas: Canvas, level: float, height: float, period: float, phase: float, colour: Colour
) -> None:
    """Rolling ground down to the bottom of the picture."""
    x = np.linspace(-2.0, SIZE + 2.0, 36)
    wave = np.sin(2 * np.pi * x / period + phase) + 0.4 * np.sin(4.6 * np.pi * x / period)
    rim = np.stack([x, level - height * (0.5 + 0.5 * wave / 1.4)], axis=1)
    canvas.polygon([*rim, (SIZE + 2.0, SIZE + 2.0), (-2.0, SIZE + 2.0)], colour)


def _hills(
    canvas: Canvas,
    light: Light,
    far: Colour,
    near: Colour,
    level: float,
    detail: np.random.Generator,
) -> None:
    phase = detail.uniform(0.0, 6.28, 2)
    _ridge(canvas, level + 1.0, 9.0, 46.0, phase[0], far)
    _ridge(canvas, level + 6.0, 5.0, 70.0, phase[1], near)
    for x in detail.uniform(3, 61, 3):
        _tree(canvas, x, level + 3.5, 2.6, under(light, (52, 112, 58), 0.6))


def _tree(canvas: Canvas, x: float, foot: float, radius: float, colour: Colour) -> None:
    canvas.line([(x, foot), (x, foot - 2.0 * radius)], 1.0, mix(colour, (90, 60, 40), 0.6))
    canvas.ellipse(x, foot - 2.2 * radius, radius, radius * 1.2, colour)


def _sea(
    canvas: Canvas,
    light: Light,
    far: Colour,
    near: Colour,
    level: float,
    detail: np.random.Generator,
) -> None:
    canvas.gradient(far, near, level, SIZE)
    x, width = detail.uniform(0, 64), detail.uniform(9, 15)
    island = under(light, (110, 138, 108), 0.9)
    canvas.polygon(
        [(x - width, level), (x - 3, level - 4.5), (x + 3, level - 3.5), (x + width, level)], island
    )
    for row, left in enumerate(detail.uniform(0, 52, 5)):
        y = level + 3.5 + 3.6 * row
        canvas.line([(left, y), (left + 9.0, y)], 0.8, mix(near, (255, 255, 255), 0.25))


def _reflection(canvas: Canvas, light: Light, near: Colour, x: float, level: float) -> None:
    for row in range(5):
        y, half = level + 1.6 + 3.0 * row, 5.0 - 0.6 * row
        canvas.line([(x - half, y), (x + half, y)], 1.0, mix(near, light.disc, 0.6))


def _desert(
    canvas: Canvas,
    light: Light,
    far: Colour,
    near: Colour,
    level: float,
    detail: np.random.Generator,
) -> None:
    phase = detail.uniform(0.0, 6.28, 2)
    _ridge(canvas, level + 1.0, 5.0, 60.0, phase[0], far)
    _ridge(canvas, level + 8.0, 6.0, 84.0, phase[1], near)
    green = under(light, (62, 132, 84), 0.5)
    for x in detail.uniform(4, 60, 2):
        foot = level + 5.0
        canvas.line([(x, foot), (x, foot - 9.0)], 2.0, green)
        canvas.line([(x, foot - 4.0), (x + 3.2, foot - 4.0), (x + 3.2, foot - 7.0)], 1.5, green)


def _forest(
    canvas: Canvas,
    light: Light,
    far: Colour,
    near: Colour,
    level: float,
    detail: np.random.Generator,
) -> None:
    for row, (count, share) in enumerate(((11, 1.0), (8, 0.55))):
        colour = under(light, (40, 104, 70), share)
        for x in np.linspace(-2, 66, count) + detail.uniform(-2, 2, count):
            height = detail.uniform(10.0, 15.0) - 2.0 * row
            foot = level + 2.0 + 3.0 * row
            canvas.polygon([(x - 4.2, foot), (x, foot - height), (x + 4.2, foot)], colour)
    canvas.polygon([(0, level + 4), (64, level + 4), (64, 64), (0, 64)], near)


def _mountains(
    canvas: Canvas,
    light: Light,
    far: Colour,
    near: Colour,
    level: float,
    detail: np.random.Generator,
) -> None:
    snow = under(light, (246, 248, 252), 0.6)
    for x, height in zip((10.0, 52.0, 32.0) + detail.uniform(-7, 7, 3), (17, 15, 22), strict=True):
        half, top = 0.95 * height, level + 2.0 - height
        canvas.polygon([(x - half, level + 2), (x, top), (x + half, level + 2)], far)
        cap = 0.34 * height
        left, right = (x - 0.95 * cap, top + cap), (x + 0.95 * cap, top + cap)
        canvas.polygon(
            [
                left,
                (x, top),
                right,
                (x + 0.3 * cap, top + 0.75 * cap),
                (x - 0.3 * cap, top + 1.1 * cap),
            ],
            snow,
        )
    _ridge(canvas, level + 5.0, 4.0, 64.0, detail.uniform(0.0, 6.28), near)


def _city(
    canvas: Canvas,
    light: Light,
    far: Colour,
    near: Colour,
    level: float,
    detail: np.random.Generator,
) -> None:
    lamp = mix((255, 226, 130), far, 0.15 if light.strength > 0.5 else 0.55)
    edges = np.arange(-2.0, 66.0, 8.5) + detail.uniform(-1.5, 1.5, 8)
    for x, height in zip(edges, detail.uniform(8, 22, 8), strict=True):
        wall = mix(far, near, float(detail.uniform(0.0, 0.7)))
        top = level + 4.0 - height
        canvas.polygon([(x, top), (x + 8.0, top), (x + 8.0, level + 4), (x, level + 4)], wall)
        for y in np.arange(top + 2.5, level - 1.0, 5.0):
            for dx in (1.8, 5.0):
                canvas.polygon(
                    [(x + dx, y), (x + dx + 1.5, y), (x + dx + 1.5, y + 2), (x + dx, y + 2)], lamp
                )
    canvas.polygon([(0, level + 4), (64, level + 4), (64, 64), (0, 64)], near)
    canvas.line([(0, level + 12), (64, level + 12)], 1.2, mix(near, (240, 240, 220), 0.45))


_PLACES = {
    "hills": _hills, "sea": _sea, "desert": _desert,
    "forest": _forest, "mountains": _mountains, "city": _city,
}  # fmt: skip
