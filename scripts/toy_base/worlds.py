"""What the base of each toy world is trained on, and where its weights go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamp.toy import base, world
from lamp.toy.scenes import base as scenes_base
from lamp.toy.scenes import drawing, motions, scene, words

Pictures = tuple[NDArray[np.uint8], NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class World:
    """One toy world.

    Attributes:
        words: its vocabulary with CLIP's token ids.
        vae: config of its VAE.
        edges: weight of the VAE's loss on differences of neighbouring pixels.
        path: the packed weights.
        pictures: draws images (n, h, w, 3) and coverages (n, h, w) of what counts most.
        captioned: draws images and full captions.
        place: the word that begins the part of a caption about the surroundings.
        motions: phrases that captions get at random, so that they mean nothing to the base.
    """

    words: dict[str, int]
    vae: dict[str, Any]
    edges: float
    path: Path
    pictures: Callable[[np.random.Generator, int], Pictures]
    captioned: Callable[[np.random.Generator, int], tuple[NDArray[np.uint8], list[str]]]
    place: str
    motions: tuple[str, ...]

    def caption(self, scene: str, rng: np.random.Generator) -> str:
        """The prompts of training: full and short captions, motion words, nothing."""
        draw = rng.random()
        motion = str(rng.choice(self.motions))
        if draw < 0.10:
            return ""
        if draw < 0.15:
            return motion
        if rng.random() < 0.15:
            scene = scene.split(f" {self.place} ")[0]
        return f"{scene} {motion}" if rng.random() < 0.35 else scene


# --- sprites ----------------------------------------------------------------------------------


def sprite_pictures(rng: np.random.Generator, count: int) -> Pictures:
    return world.draw(world.sample_scenes(rng, count))


def captioned_sprites(rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Images (n, h, w, 3) and captions; every fifth scene has two objects."""
    two = count // 5
    one = world.sample_scenes(rng, count - two, varied=0.4)
    first, second = sample_two(rng, two)
    images = np.concatenate([world.draw(one)[0], world.draw(first, second)[0]])
    return images, one.captions() + world.captions_of_two(first, second)


def sample_two(
    rng: np.random.Generator, count: int, pairs: NDArray[np.int64] | None = None
) -> tuple[world.Scenes, world.Scenes]:
    """Two small objects on one ground, one in each half of the picture: they never touch.

    Their colours can be told apart from each other as well as from the ground. ``pairs`` (n, 2)
    fixes shape and colour of the first; the second is free.
    """
    first = world.sample_scenes(rng, count, pairs)
    scores = rng.random((count, len(world.OBJECT_COLOURS)))
    scores[~world.contrast_table().T[first.ground]] = -1.0
    scores[~world.far_apart(world.OBJECT_COLOURS, world.OBJECT_COLOURS)[first.colour]] -= 1.0
    radius = rng.uniform(*world.SMALL_RADIUS, size=(2, count))
    half = world.SIZE / 2
    room = half / 2 - radius - 0.5
    across = half + (half - radius) * rng.uniform(-1.0, 1.0, size=(2, count))
    along = half + np.array([[-1.0], [1.0]]) * rng.choice([-1.0, 1.0], size=count) * half / 2
    along = along + room * rng.uniform(-1.0, 1.0, size=(2, count))
    stacked = rng.random(count) < 0.5
    x, y = np.where(stacked, across, along), np.where(stacked, along, across)
    one = replace(first, x=x[0], y=y[0], radius=radius[0], angle=np.zeros(count))
    other = replace(
        one,
        shape=rng.integers(len(world.SHAPES), size=count),
        colour=scores.argmax(axis=1),
        x=x[1],
        y=y[1],
        radius=radius[1],
    )
    return one, other


# --- scenes -----------------------------------------------------------------------------------


def some_stills(rng: np.random.Generator, count: int) -> list[scene.Scene]:
    """Pictures of all subjects, at all places and poses that their motions pass through."""
    kinds = tuple(motions.MOTIONS)
    return [motions.still(rng, scene.choose(rng, kinds)) for _ in range(count)]


def scene_pictures(rng: np.random.Generator, count: int) -> Pictures:
    return drawing.draw_all(some_stills(rng, count))


def captioned_scenes(rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], list[str]]:
    chosen = some_stills(rng, count)
    return drawing.draw_all(chosen)[0], [one.caption for one in chosen]


WORLDS: dict[str, World] = {
    "sprites": World(
        base.WORDS,
        base.VAE_CONFIG,
        0.0,
        base.PATH,
        sprite_pictures,
        captioned_sprites,
        "on",
        world.MOTION_PHRASES,
    ),
    "scenes": World(
        words.WORDS,
        scenes_base.VAE_CONFIG,
        0.05,
        scenes_base.PATH,
        scene_pictures,
        captioned_scenes,
        "near",
        tuple(motion.prompt for motion in motions.MOTIONS.values()),
    ),
}


def compact_ids(words: dict[str, int]) -> list[int]:
    """Token ids that own an embedding row in the file; row 0 before them is every other token."""
    return [base.START, base.END, *sorted(set(words.values()))]
