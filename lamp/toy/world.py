"""Sprite world: one coloured object on a coloured, textured background, 32x32 pixels.

A scene is a few numbers, from which captions, true frames and true masks are made. Lengths are in
pixels, angles in radians, colours RGB bytes. Randomness comes only from the caller's
``numpy.random.Generator`` or seed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from .shapes import DISTANCES, SHAPES, centres

SIZE = 32
FRAMES = 8

Array = NDArray[np.float64]

OBJECT_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "orange": (250, 145, 30),
    "yellow": (245, 225, 55),
    "green": (45, 190, 75),
    "blue": (50, 90, 235),
    "purple": (150, 55, 205),
    "pink": (250, 140, 200),
    "white": (245, 245, 245),
}
GROUND_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (28, 28, 32),
    "gray": (125, 125, 125),
    "brown": (112, 76, 46),
    "navy": (26, 36, 92),
    "olive": (98, 104, 42),
    "teal": (18, 98, 104),
    "beige": (205, 188, 152),
}
TEXTURES = ("plain", "striped", "dotted", "checked")
MOTION_PHRASES = (
    "moves right", "moves left", "moves up", "moves down", "grows", "falls", "rises", "turns",
    "spins", "jumps", "waves", "swings", "rolls", "slides", "flies", "floats",
)  # fmt: skip
# Further words for future motions and scenes; each is a single CLIP token.
SPARE_WORDS = ("the", "and", "with", "two", "moving", "still", "big", "small", "object", "shape")

MIN_CONTRAST = 115.0  # RGB distance below which an object is hard to see
TEXTURE_DEPTH = 13.0  # brightness amplitude of a texture, in bytes
USUAL_RADIUS = (5.0, 6.5)
SMALL_RADIUS = (4.0, 5.0)  # of each of two objects


def vocabulary() -> tuple[str, ...]:
    """All words of captions and motion prompts, sorted."""
    words = {"a", "an", "on", "ground", *SPARE_WORDS, *TEXTURES, *SHAPES}
    words |= {*OBJECT_COLOURS, *GROUND_COLOURS}
    words |= {word for phrase in MOTION_PHRASES for word in phrase.split()}
    return tuple(sorted(words))


# --- scenes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """Many scenes; every field is an array. Shapes, colours etc. are indices into the tables."""

    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    ground: NDArray[np.int64]
    texture: NDArray[np.int64]
    x: Array  # centre of the object
    y: Array
    radius: Array
    angle: Array
    phase: Array  # (n, 2): offset of the texture

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: slice | NDArray[np.int64]) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def repeat(self, count: int) -> Scenes:
        """Repeat each scene ``count`` times."""
        return Scenes(
            **{f.name: np.repeat(getattr(self, f.name), count, axis=0) for f in fields(self)}
        )

    def captions(self) -> list[str]:
        return [
            f"{subject(SHAPES[s], tuple(OBJECT_COLOURS)[c])} on "
            f"a {tuple(GROUND_COLOURS)[g]} {TEXTURES[t]} ground"
            for s, c, g, t in zip(self.shape, self.colour, self.ground, self.texture, strict=True)
        ]


def captions_of_two(first: Scenes, second: Scenes) -> list[str]:
    """Captions with both objects on their common background."""
    names = [text.split(" on ")[0] for text in first.captions()]
    return [f"{name} and {text}" for name, text in zip(names, second.captions(), strict=True)]


def subject(shape: str, colour: str) -> str:
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape}"


def contrast_table() -> NDArray[np.bool_]:
    """(object colours, grounds): the pairs with enough contrast to be measured."""
    return far_apart(OBJECT_COLOURS, GROUND_COLOURS)


def far_apart(
    colours: dict[str, tuple[int, int, int]], others: dict[str, tuple[int, int, int]]
) -> NDArray[np.bool_]:
    a, b = (np.array(list(table.values()), dtype=float) for table in (colours, others))
    return np.linalg.norm(a[:, None] - b[None], axis=-1) >= MIN_CONTRAST


def _choose_ground(rng: np.random.Generator, colour: NDArray[np.int64]) -> NDArray[np.int64]:
    scores = rng.random((len(colour), len(GROUND_COLOURS)))
    scores[~contrast_table()[colour]] = -1.0
    return scores.argmax(axis=1)


def sample_scenes(
    rng: np.random.Generator,
    count: int,
    pairs: NDArray[np.int64] | None = None,
    varied: float = 0.25,
) -> Scenes:
    """Random scenes for text-to-image training; ``pairs`` (n, 2) fixes shape and colour.

    Most objects have the size and upright pose of the clips. A share ``varied`` differ in size, and
    as many in angle, so that the base model knows rotated and larger objects.
    """
    if pairs is None:
        shape = rng.integers(len(SHAPES), size=count)
        colour = rng.integers(len(OBJECT_COLOURS), size=count)
    else:
        shape, colour = pairs[:, 0], pairs[:, 1]
    radius = rng.uniform(*USUAL_RADIUS, size=count)
    radius = np.where(rng.random(count) < varied, rng.uniform(3.5, 8.0, size=count), radius)
    angle = np.where(rng.random(count) < varied, rng.uniform(0.0, 2 * np.pi, size=count), 0.0)
    room = SIZE / 2 - radius
    return Scenes(
        shape=shape,
        colour=colour,
        ground=_choose_ground(rng, colour),
        texture=rng.integers(len(TEXTURES), size=count),
        x=SIZE / 2 + room * rng.uniform(-1.0, 1.0, size=count),
        y=SIZE / 2 + room * rng.uniform(-1.0, 1.0, size=count),
        radius=radius,
        angle=angle,
        phase=rng.uniform(0.0, 8.0, size=(count, 2)),
    )


# --- drawing --------------------------------------------------------------------------------


def _grid() -> tuple[Array, Array]:
    centre = np.arange(SIZE) + 0.5
    return np.meshgrid(centre, centre)


def coverage(scenes: Scenes) -> Array:
    """Share (n, h, w) in 0..1 of each pixel that the object covers."""
    gx, gy = _grid()
    cover = np.zeros((len(scenes), SIZE, SIZE))
    for index, name in enumerate(SHAPES):
        chosen = np.flatnonzero(scenes.shape == index)
        if not len(chosen):
            continue
        part = scenes[chosen]
        radius = part.radius[:, None, None]
        dx = (gx - part.x[:, None, None]) / radius
        dy = (gy - part.y[:, None, None]) / radius
        cos, sin = np.cos(part.angle)[:, None, None], np.sin(part.angle)[:, None, None]
        distance = DISTANCES[name](cos * dx + sin * dy, cos * dy - sin * dx) * radius
        cover[chosen] = np.clip(0.5 - distance, 0.0, 1.0)
    return cover


def visible_centre(scenes: Scenes) -> Array:
    """Centre of area (n, 2) of each object, x and y in pixels."""
    u, v = centres()[scenes.shape].T * scenes.radius
    cos, sin = np.cos(scenes.angle), np.sin(scenes.angle)
    return np.stack([scenes.x + cos * u - sin * v, scenes.y + sin * u + cos * v], axis=1)


def centred(scenes: Scenes, place: Array) -> Scenes:
    """The scenes moved so that the visible centre of each is at ``place`` (n, 2)."""
    gap = place - visible_centre(scenes)
    return replace(scenes, x=scenes.x + gap[:, 0], y=scenes.y + gap[:, 1])


def _wave(position: Array, period: float) -> Array:
    """A soft square wave in -1..1."""
    return np.clip(1.8 * np.sin(2.0 * np.pi * position / period), -1.0, 1.0)


def texture_field(scenes: Scenes) -> Array:
    """Brightness (n, h, w) in -1..1 of the background's pattern."""
    gx, gy = _grid()
    px = gx + scenes.phase[:, 0, None, None]
    py = gy + scenes.phase[:, 1, None, None]
    patterns = {
        "plain": np.zeros_like(px),
        "striped": _wave(py, 8.0),
        "checked": _wave(px, 8.0) * _wave(py, 8.0),
        "dotted": np.clip(
            3.0 * (np.cos(2 * np.pi * px / 8.0) + np.cos(2 * np.pi * py / 8.0)) - 2.6, -0.6, 1.0
        ),
    }
    order = np.stack([patterns[name] for name in TEXTURES])
    return order[scenes.texture, np.arange(len(scenes))]


def draw_ground(scenes: Scenes) -> Array:
    """The background (n, h, w, 3) in 0..255."""
    base = np.array(list(GROUND_COLOURS.values()), dtype=float)[scenes.ground]
    return base[:, None, None, :] + TEXTURE_DEPTH * texture_field(scenes)[..., None]


def draw(*objects: Scenes, light: Array | float = 1.0) -> tuple[NDArray[np.uint8], Array]:
    """Images (n, h, w, 3) as bytes, and the coverage (n, h, w) of the last object.

    Several objects share the background of the first; later ones are drawn over earlier ones.
    `light` (n) is a factor on the background's brightness.
    """
    image = draw_ground(objects[0]) * np.reshape(light, (-1, 1, 1, 1))
    for scenes in objects:
        cover = coverage(scenes)
        paint = np.array(list(OBJECT_COLOURS.values()), dtype=float)[scenes.colour]
        image = image + cover[..., None] * (paint[:, None, None, :] - image)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), cover
