"""Scenes of the eight subjects: what they consist of, and captions.

Lengths are in pixels, y down. Randomness comes only from the caller's ``numpy.random.Generator``
or seed; ``Scene.detail`` seeds what stays in a clip (hills, stars, drops, sparks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import LOOKS, Colour, mix
from .landscape import LIGHTS, PLACES, TIMES, under

COLOURS: dict[str, Colour] = {
    "red": (222, 52, 48),
    "orange": (246, 142, 36),
    "yellow": (248, 218, 66),
    "green": (52, 168, 84),
    "blue": (58, 98, 226),
    "purple": (148, 72, 200),
    "pink": (246, 138, 190),
    "white": (244, 244, 240),
}
# What captions call the subjects.
NOUNS = {
    "helicopter": "{} helicopter",
    "waterfall": "waterfall with {} rocks",
    "rain": "{} umbrella in rain",
    "firework": "{} firework",
    "horse": "{} horse",
    "birds": "{} birds",
    "smile": "girl with {} hair",
    "guitar": "man in {} with guitar",
}
DARK = ("firework",)  # subjects that need a dark sky
LIT_SHARE = 0.28  # of the time's tint in a subject, so that it stays easy to see at night


@dataclass(frozen=True)
class Scene:
    """One picture.

    ``x``, ``y``: the subject's place; ``phase``: its pose, see `nature` and `figures`.
    """

    kind: str
    look: str
    colour: str
    place: str
    time: str
    x: float
    y: float
    phase: float
    detail: int

    @property
    def caption(self) -> str:
        noun = NOUNS[self.kind].format(self.colour)
        words = noun if self.look == "night" else f"{self.look} {noun}"
        article = "an" if words[0] in "aeiou" else "a"
        front = words if self.kind == "birds" else f"{article} {words}"
        return f"{front} near {self.place} at {self.time}"

    @property
    def paint(self) -> Colour:
        return self.tinted(COLOURS[self.colour])

    def tinted(self, colour: Colour) -> Colour:
        return under(LIGHTS[self.time], colour, LIT_SHARE)

    def random(self, stream: int) -> np.random.Generator:
        """A fresh generator of what stays in the clip."""
        return np.random.default_rng([self.detail, stream])


def darker(colour: Colour, share: float = 0.28) -> Colour:
    return mix(colour, (20, 16, 40), share)


def lighter(colour: Colour, share: float = 0.35) -> Colour:
    return mix(colour, (255, 255, 255), share)


def times(kind: str, look: str) -> tuple[str, ...]:
    """The times of day at which a subject in a look is shown; the look 'night' is the time."""
    if look == "night":
        return ("night",)
    return ("dusk",) if kind in DARK else TIMES[:3]


def choose(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def appearance(rng: np.random.Generator, kind: str) -> dict[str, str]:
    """A random look, colour, place and time."""
    look = choose(rng, LOOKS)
    return {
        "look": look,
        "colour": choose(rng, tuple(COLOURS)),
        "place": choose(rng, PLACES),
        "time": choose(rng, times(kind, look)),
    }
