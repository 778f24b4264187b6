"""What Table 1 needs to know of a toy world: its base, clips, test cases, truth and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.toy import scenes as landscapes
from benchmarks.toy.ablations_report import Measure
from benchmarks.toy.runs import RECIPES, Figures, Recipe, Videos
from lamp.toy import base, clip, score, world
from lamp.toy.cases import Clips, evaluation_cases, training_clips
from lamp.toy.motions import MOTIONS
from lamp.toy.scenes import base as scenes_base
from lamp.toy.scenes import cases as scenes_cases
from lamp.toy.scenes import motions as scenes_motions
from lamp.toy.scenes.canvas import SIZE as SCENE_SIZE
from lamp.toy.scenes.drawing import draw_all
from lamp.toy.scenes.words import WORDS


class TestCase(Protocol):
    """One test: the true video `f h w 3`, whose first frame LAMP gets, and its prompt."""

    frames: NDArray[np.uint8]

    @property
    def first_frame(self) -> NDArray[np.uint8]: ...

    @property
    def prompt(self) -> str: ...


class World(Protocol):
    """A world with a base model that knows its pictures, and motions that the base does not know.

    - ``recipes``: motion -> how LAMP is tuned there; all methods take the same number of steps;
    - ``phrases``: what the motions' prompts say, for the training of CLIP;
    - ``size``: of a picture, in pixels; ``words``: of its captions, with their tokens;
    - ``measures``: by the world's known truth;
    - ``base_path``: its base model;
    - ``clip_path``: its CLIP.
    """

    name: str
    size: int
    recipes: dict[str, Recipe]
    phrases: Sequence[str]
    words: dict[str, int]
    measures: Mapping[str, Measure]
    base_path: Path
    clip_path: Path

    def clips(self, seed: int, motion: str) -> Clips: ...

    def cases(self, seed: int, motion: str, count: int) -> Sequence[Any]:
        """First frames that no clip shows, each a `TestCase`."""
        ...

    def truth(self, videos: Videos, cases: Sequence[Any]) -> Figures:
        """The world's own `measures`."""
        ...

    def pictures(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], list[str]]:
        """Pictures `n h w 3` with their captions, to train CLIP on."""
        ...


class Sprites:
    """The world of lamp/toy: sprites of 32 x 32 pixels, six motions."""

    name = "sprites"
    size = world.SIZE
    recipes = RECIPES
    phrases: Sequence[str] = world.MOTION_PHRASES
    words = base.WORDS
    measures: Mapping[str, Measure] = {
        "iou": Measure("overlap", True, high=1.0),
        "nrmse": Measure("path error", False),
        "followed": Measure("followed", True, high=1.0),
        "kept": Measure("kept", True, high=1.0),
    }
    base_path = base.PATH
    clip_path = clip.PATH

    def clips(self, seed: int, motion: str) -> Clips:
        return training_clips(seed, motion)

    def cases(self, seed: int, motion: str, count: int) -> Sequence[Any]:
        """Half from each set: 'combination' (shape and colour are in the clips, but not together)
        and 'hard' (neither is)."""
        half = count // 2
        near = evaluation_cases(seed, "combination", motion, count=count - half)
        return near + (evaluation_cases(seed, "hard", motion, count=half) if half else [])

    def truth(self, videos: Videos, cases: Sequence[Any]) -> Figures:
        pairs = zip(videos, cases, strict=True)
        found = score.summarise([score.score_clip(video, case) for video, case in pairs])
        return {name: found[name] for name in self.measures}

    def pictures(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], list[str]]:
        """Single objects, a fifth with two, and some pictures of one colour and nothing else."""
        plain, two = count // 20, count // 5
        one = world.sample_scenes(rng, count - two - plain, varied=0.4)
        first, second = _two_objects(rng, two)
        flat, names = _plain_colours(rng, plain)
        images = np.concatenate([world.draw(one)[0], world.draw(first, second)[0], flat])
        return images, one.captions() + world.captions_of_two(first, second) + names


def _two_objects(rng: np.random.Generator, count: int) -> tuple[world.Scenes, world.Scenes]:
    """The objects of the motion 'two_objects' at any time: alike, one in each half."""
    first = world.sample_scenes(rng, count)
    parts = MOTIONS["two_objects"].parts
    placed = [
        replace(
            first,
            x=rng.uniform(6.5, world.SIZE - 6.5, size=count),
            y=rng.uniform(*part.y, size=count),
            radius=rng.uniform(*part.radius, size=count),
            angle=np.zeros(count),
        )
        for part in parts
    ]
    return placed[0], placed[1]


def _plain_colours(rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], list[str]]:
    colours = {**world.OBJECT_COLOURS, **world.GROUND_COLOURS}
    names = rng.choice(list(colours), size=count)
    shades = np.array([colours[name] for name in names]) + rng.integers(-45, 46, (count, 3))
    flat = np.clip(shades, 0, 255).astype(np.uint8)[:, None, None]
    side = world.SIZE
    return flat.repeat(side, 1).repeat(side, 2), [f"a plain {name} ground" for name in names]


class Scenes:
    """The world of lamp/toy/scenes: landscapes of 64 x 64 pixels, the paper's eight motions."""

    name = "scenes"
    size = SCENE_SIZE
    recipes = landscapes.RECIPES
    phrases: Sequence[str] = [kind.prompt for kind in scenes_motions.MOTIONS.values()]
    words = WORDS
    measures: Mapping[str, Measure] = {
        "motion": Measure("motion", True, high=1.0),
        "followed": Measure("followed", True, high=1.0),
        "overlap": Measure("overlap", True, high=1.0),
        "change": Measure("change", True, high=1.0),
    }
    base_path = scenes_base.PATH
    clip_path = scenes_base.CLIP_PATH

    def clips(self, seed: int, motion: str) -> Clips:
        return scenes_cases.training_clips(seed, motion)

    def cases(self, seed: int, motion: str, count: int) -> Sequence[Any]:
        """In colours and places that no clip shows."""
        return scenes_cases.evaluation_cases(seed, motion, count)

    def truth(self, videos: Videos, cases: Sequence[Any]) -> Figures:
        found = landscapes.measured(videos, list(cases))
        return {name: found[name] for name in self.measures}

    def pictures(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.uint8], list[str]]:
        """All subjects in any pose."""
        kinds = rng.choice(list(scenes_motions.MOTIONS), size=count)
        scenes = [scenes_motions.still(rng, str(kind)) for kind in kinds]
        return draw_all(scenes)[0], [scene.caption for scene in scenes]


WORLDS: dict[str, World] = {"sprites": Sprites(), "scenes": Scenes()}
