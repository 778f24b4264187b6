"""Training clips of the eight motions, and test cases with unseen looks of their subjects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import LampError
from ..cases import Clips
from .canvas import LOOKS
from .drawing import draw, draw_all
from .landscape import PLACES
from .motions import MOTIONS, perform, start
from .scene import COLOURS, Scene, choose, times

FRAMES = 8
CASES = 6  # per motion: 48 videos, as in the paper
SEEN_COLOURS, SEEN_PLACES = 5, 4


@dataclass(frozen=True)
class SceneCase:
    """One test: first frame, prompt and ground truth."""

    scenes: list[Scene]  # one per frame
    frames: NDArray[np.uint8]  # (f, h, w, 3)
    covers: NDArray[np.float32]  # (f, h, w): share of each pixel that what moves covers
    backdrop: NDArray[np.uint8]  # (h, w, 3): the picture without what moves

    @property
    def kind(self) -> str:
        return self.scenes[0].kind

    @property
    def first_frame(self) -> NDArray[np.uint8]:
        return self.frames[0]

    @property
    def caption(self) -> str:
        return self.scenes[0].caption

    @property
    def motion(self) -> str:
        return MOTIONS[self.kind].prompt

    @property
    def prompt(self) -> str:
        return f"{self.caption} {self.motion}"


def make_case(scenes: list[Scene]) -> SceneCase:
    """The truth of a video of these scenes."""
    frames, covers = draw_all(scenes)
    return SceneCase(scenes, frames, covers, draw(scenes[0], moving=False)[0])


def _appearances(seed: int, kind: str, count: int, seen: bool) -> list[dict[str, str]]:
    """Looks in turn; colours and places of clips (``seen``) and tests never meet."""
    if kind not in MOTIONS:
        raise LampError(f"Unknown motion '{kind}': choose from {', '.join(MOTIONS)}.")
    split = np.random.default_rng([seed, 201])
    colours, places = split.permutation(list(COLOURS)), split.permutation(PLACES)
    colours = colours[:SEEN_COLOURS] if seen else colours[SEEN_COLOURS:]
    places = places[:SEEN_PLACES] if seen else places[SEEN_PLACES:]
    rng = np.random.default_rng([seed, 203 + seen])
    looks = rng.permutation(LOOKS)
    found = []
    for i in range(count):
        look = str(looks[i % len(looks)])
        found.append(
            {
                "look": look,
                "colour": str(colours[i % len(colours)]),
                "place": str(places[i % len(places)]),
                "time": choose(rng, times(kind, look)),
            }
        )
    return found


def training_clips(seed: int, kind: str, clips: int = 8, frames: int = FRAMES) -> Clips:
    """Training clips; the speed of each differs from the nominal one by at most a tenth.

    Raises LampError for an unknown motion.
    """
    looks = _appearances(seed, kind, clips, seen=True)
    rng = np.random.default_rng([seed, 207])
    videos = [
        perform(start(rng, kind, look), frames, float(rng.uniform(0.9, 1.1))) for look in looks
    ]
    pictures = np.stack([draw_all(video)[0] for video in videos])
    return Clips(pictures, [video[0].caption for video in videos], MOTIONS[kind].prompt)


def evaluation_cases(
    seed: int, kind: str, count: int = CASES, frames: int = FRAMES
) -> list[SceneCase]:
    """Cases in colours and places that no clip of this seed shows.

    Raises LampError for an unknown motion.
    """
    looks = _appearances(seed, kind, count, seen=False)
    rng = np.random.default_rng([seed, 209])
    return [make_case(perform(start(rng, kind, look), frames)) for look in looks]
