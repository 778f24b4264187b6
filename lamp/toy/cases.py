"""Training clips of the toy motions, and test cases with unseen objects."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import LampError
from .motions import MOTIONS, Objects, Part, perform
from .shapes import SHAPES
from .world import (
    FRAMES,
    OBJECT_COLOURS,
    SIZE,
    Array,
    Scenes,
    captions_of_two,
    coverage,
    draw,
    draw_ground,
    sample_scenes,
)

SPEEDS = (0.9, 1.1)  # of the clips, times the nominal one


@dataclass(frozen=True)
class Clips:
    """Clips of one motion: bytes (n, f, h, w, 3), one caption each, the motion's prompt."""

    frames: NDArray[np.uint8]
    captions: list[str]
    motion: str


@dataclass(frozen=True)
class Target:
    """Ground truth of one object: colour, scene and mask in every frame, and field."""

    colour: tuple[int, int, int]
    scenes: Scenes  # f
    masks: NDArray[np.bool_]  # (f, h, w)
    field: NDArray[np.bool_]  # (h, w), where it may be; each of two objects has one half


@dataclass(frozen=True)
class Case:
    """One test: first frame, prompt and ground truth at the mean speed of clips, times ``pace``.

    ``ground`` (h, w, 3) is the background.
    """

    frames: NDArray[np.uint8]  # (f, h, w, 3)
    targets: tuple[Target, ...]  # one per object
    caption: str
    kind: str  # which of MOTIONS
    ground: Array
    pace: float = 1.0

    def at_speed(self, speed: float) -> tuple[Target, ...]:
        """The ground truth at this multiple of its speed."""
        first = tuple(target.scenes[:1] for target in self.targets)
        moved = perform(first, self.kind, len(self.frames), np.array([self.pace * speed]))
        return tuple(
            replace(target, scenes=scenes, masks=coverage(scenes) > 0.5)
            for target, scenes in zip(self.targets, moved, strict=True)
        )

    @property
    def first_frame(self) -> NDArray[np.uint8]:
        return self.frames[0]

    @property
    def motion(self) -> str:
        return MOTIONS[self.kind].prompt

    @property
    def prompt(self) -> str:
        return f"{self.caption} {self.motion}"


@dataclass(frozen=True)
class Split:
    """Pairs (shape, colour) as (n, 2) indices. ``clips``: one row per clip."""

    clips: NDArray[np.int64]
    combination: NDArray[np.int64]
    hard: NDArray[np.int64]


def split_pairs(seed: int, clips: int = 8, motion: str = "moves_right") -> Split:
    """The objects of clips and tests. Half as many shapes and colours as clips, each in two clips.

    ``combination``: shape and colour occur in the clips, but not together (none with four clips,
    which show all combinations). ``hard``: neither occurs in the clips.
    Raises LampError for a number of clips that leaves no shape or colour for ``hard``.
    """
    allowed = np.array([SHAPES.index(name) for name in MOTIONS[motion].shapes])
    half, most = clips // 2, min(len(allowed), len(OBJECT_COLOURS)) - 1
    if clips % 2 or not 2 <= half <= most:
        raise LampError(
            f"{clips} clips of the motion '{motion}' are not possible: choose an even number from "
            f"4 to {2 * most}, so that some shapes and colours stay unseen."
        )
    rng = np.random.default_rng([seed, 101])
    shapes = allowed[rng.permutation(len(allowed))]
    colours = rng.permutation(len(OBJECT_COLOURS))
    seen = [(s, colours[(i + k) % half]) for i, s in enumerate(shapes[:half]) for k in (0, 1)]
    unseen = [(s, c) for s in shapes[:half] for c in colours[:half] if (s, c) not in seen]
    hard = [(s, c) for s in shapes[half:] for c in colours[half:]]
    return Split(np.array(seen), np.array(unseen).reshape(-1, 2), np.array(hard))


def _start(rng: np.random.Generator, motion: str, pairs: NDArray[np.int64]) -> Objects:
    """Upright objects ``pairs`` at the start of the motion. In a motion of two parts both objects
    look alike, because the small base model confuses two different ones."""
    scenes = sample_scenes(rng, len(pairs), pairs)
    return tuple(_place(rng, scenes, part) for part in MOTIONS[motion].parts)


def _place(rng: np.random.Generator, scenes: Scenes, part: Part) -> Scenes:
    count = len(scenes)
    return replace(
        scenes,
        x=rng.uniform(*part.x, size=count),
        y=rng.uniform(*part.y, size=count),
        radius=rng.uniform(*part.radius, size=count),
        angle=np.zeros(count),
    )


def _captions(objects: Objects) -> list[str]:
    return objects[0].captions() if len(objects) == 1 else captions_of_two(*objects)


def training_clips(
    seed: int,
    motion: str = "moves_right",
    clips: int = 8,
    frames: int = FRAMES,
    fade: float = 0.0,
    pace: float = 1.0,
) -> Clips:
    """Training clips; the speed of each differs from the nominal one by at most a tenth.

    ``fade`` is the share of the background's brightness that is lost until the last frame, ``pace``
    a factor on the nominal speed.
    Raises LampError as ``split_pairs`` does.
    """
    rng = np.random.default_rng([seed, 103])
    pairs = split_pairs(seed, clips, motion).clips
    objects = _start(rng, motion, pairs)
    placed = perform(objects, motion, frames, pace * rng.uniform(*SPEEDS, size=clips))
    images, _ = draw(*placed, light=np.tile(np.linspace(1.0, 1.0 - fade, frames), clips))
    images = images.reshape(clips, frames, SIZE, SIZE, 3)
    return Clips(images, _captions(objects), MOTIONS[motion].prompt)


def evaluation_cases(
    seed: int,
    which: str,
    motion: str = "moves_right",
    count: int = 24,
    clips: int = 8,
    frames: int = FRAMES,
    pace: float = 1.0,
) -> list[Case]:
    """``which`` is 'combination' or 'hard'; ``seed``, ``clips`` and ``pace`` as for the training
    clips.

    Raises LampError as ``split_pairs`` does, or if four clips leave no unseen combination.
    """
    split = split_pairs(seed, clips, motion)
    pairs = {"combination": split.combination, "hard": split.hard}[which]
    if not len(pairs):
        raise LampError(f"{clips} clips show every combination: use six or more, or choose 'hard'.")
    rng = np.random.default_rng([seed, 107 if which == "combination" else 109])
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])
    objects = _start(rng, motion, pairs[order[:count]])
    placed = perform(objects, motion, frames, np.full(count, pace))
    images = draw(*placed)[0].reshape(count, frames, SIZE, SIZE, 3)
    grounds = draw_ground(objects[0])
    return [
        Case(
            frames=images[i],
            targets=tuple(
                _target(scenes[i * frames : (i + 1) * frames], field)
                for scenes, field in zip(placed, _fields(len(placed)), strict=True)
            ),
            caption=text,
            kind=motion,
            ground=grounds[i],
            pace=pace,
        )
        for i, text in enumerate(_captions(objects))
    ]


def _target(scenes: Scenes, field: NDArray[np.bool_]) -> Target:
    colour = list(OBJECT_COLOURS.values())[scenes.colour[0]]
    return Target(colour, scenes, coverage(scenes) > 0.5, field)


def _fields(objects: int) -> list[NDArray[np.bool_]]:
    """An equal share of the picture's rows for each object, from the top."""
    owner = np.arange(SIZE) * objects // SIZE
    return [np.repeat((owner == i)[:, None], SIZE, axis=1) for i in range(objects)]
