"""The eight motions: where their subjects start, and how a scene changes from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .scene import Scene, appearance

Range = tuple[float, float]


@dataclass(frozen=True)
class MotionKind:
    """A motion of one subject.

    Attributes:
        prompt: words that a prompt adds to the caption.
        x, y: range of the subject's place at the start.
        velocity: pixels per frame, x and y.
        pace: change of the phase per frame; for a motion that happens once, over the whole clip.
        phase: range of the phase at the start. It is narrow where one small picture does not tell
            how the motion goes on: a strum, a wing, a rotor, a leg.
        once: progress from 0 to 1 rather than a cycle.
    """

    prompt: str
    x: Range
    y: Range
    velocity: tuple[float, float]
    pace: float
    phase: Range = (0.0, 1.0)
    once: bool = False


MOTIONS: dict[str, MotionKind] = {
    "helicopter": MotionKind("flies", (18.5, 22.0), (15.0, 25.0), (2.0, 0.0), 0.09, (0.0, 0.03)),
    "waterfall": MotionKind("flows", (27.0, 37.0), (0.0, 0.0), (0.0, 0.0), 3.0, (0.0, 54.0)),
    "rain": MotionKind("falls", (18.0, 40.0), (30.0, 33.0), (0.0, 0.0), 4.0, (0.0, 72.0)),
    "firework": MotionKind(
        "bursts", (25.0, 39.0), (20.0, 26.0), (0.0, 0.0), 0.8, (0.12, 0.16), once=True
    ),
    "horse": MotionKind("runs", (22.0, 25.0), (38.0, 42.0), (1.0, 0.0), 1.0 / 8.0, (0.0, 0.1)),
    "birds": MotionKind("fly", (20.0, 24.0), (24.0, 28.0), (1.5, -0.3), 1.0 / 6.0, (0.25, 0.3)),
    "smile": MotionKind(
        "smiles", (27.0, 37.0), (27.0, 31.0), (0.0, 0.0), 1.0, (0.0, 0.0), once=True
    ),
    "guitar": MotionKind("plays", (24.0, 36.0), (23.0, 26.0), (0.0, 0.0), 1.0 / 6.0, (0.75, 0.8)),
}
LONGEST = 16  # frames of the longest clip


def start(rng: np.random.Generator, kind: str, look: dict[str, str] | None = None) -> Scene:
    """A scene at the start of its motion; ``look`` as `appearance` draws it."""
    motion = MOTIONS[kind]
    return Scene(
        kind=kind,
        **(look or appearance(rng, kind)),
        x=float(rng.uniform(*motion.x)),
        y=float(rng.uniform(*motion.y)),
        phase=float(rng.uniform(*motion.phase)),
        detail=int(rng.integers(2**31)),
    )


def perform(scene: Scene, frames: int, speed: float = 1.0) -> list[Scene]:
    """The scene in all frames; ``speed`` multiplies the pace."""
    motion = MOTIONS[scene.kind]
    pace = motion.pace / (frames - 1) if motion.once else motion.pace * speed
    moved = speed * np.arange(frames)
    return [
        replace(
            scene,
            x=scene.x + motion.velocity[0] * moved[i],
            y=scene.y + motion.velocity[1] * moved[i],
            phase=scene.phase + pace * i,
        )
        for i in range(frames)
    ]


def still(rng: np.random.Generator, kind: str) -> Scene:
    """A picture at any place and pose that the motion passes through, and a little around."""
    scene, motion = start(rng, kind), MOTIONS[kind]
    passed = float(rng.uniform(0.0, LONGEST - 1.0)) * 1.1
    phase = float(rng.uniform(0.0, 1.0)) * motion.pace if motion.once else passed * motion.pace
    return replace(
        scene,
        x=scene.x + motion.velocity[0] * passed,
        y=scene.y + motion.velocity[1] * passed,
        phase=scene.phase + phase,
    )
