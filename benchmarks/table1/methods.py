"""The rows of Table 1: how each method learns a motion, and makes videos of unseen objects.

All methods that learn take the same number of optimizer steps of the same optimizer, with the same
number of videos in each (Tune-A-Video's are always its one clip).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.toy.ablations import FreeTraining
from benchmarks.toy.runs import (
    MOTION_GUIDANCE,
    Recipe,
    Sampler,
    Videos,
    finished,
    pictures,
    start_training,
)
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.toy.base import ToyBase
from lamp.toy.cases import Clips
from lamp.training.loop import Training

from . import animate_diff, text2video_zero, tune_a_video
from .animate_diff import AnimateDiff
from .tune_a_video import TuneAVideo
from .worlds import World

STEPS = 50  # of sampling and inversion in the baselines, as published
BATCH = 4  # videos at a time


@dataclass(frozen=True)
class Job:
    """One motion and seed. `guidance`: by the prompt, in the methods that draw from it alone."""

    world: World
    toy: ToyBase
    kind: str
    seed: int
    recipe: Recipe
    guidance: float

    @cached_property
    def clips(self) -> Clips:
        return self.world.clips(self.seed, self.kind)

    @cached_property
    def source(self) -> Clips:
        """One of the clips at random, as the paper chooses Tune-A-Video's."""
        rng = np.random.default_rng([self.seed, 227])
        chosen = int(rng.integers(len(self.clips.frames)))
        frames, captions = self.clips.frames[chosen][None], [self.clips.captions[chosen]]
        return Clips(frames, captions, self.clips.motion)

    def tuned(self, motion: Motion, loop: type[Training], clips: Clips) -> Motion:
        given = (self.toy, self.recipe, self.seed, self.kind)
        return finished(start_training(*given, motion, loop, clips=clips)).motion


@dataclass(frozen=True)
class Method:
    """One row.

    - ``learned``: the name under which its learned layers are kept; empty for none;
    - ``fresh``: new layers; ``learn``: trains them;
    - ``videos``: of cases, with a seed.
    """

    learned: str
    fresh: Callable[[Job], Motion] | None
    learn: Callable[[Job], Motion] | None
    videos: Callable[[Job, Any, Sequence[Any]], Videos]


# --- LAMP -------------------------------------------------------------------------------------


def _lamp(job: Job) -> Motion:
    return Motion(map_unet(job.toy.unet)).initialise(job.seed)


def _learn_lamp(job: Job) -> Motion:
    return job.tuned(_lamp(job), Training, job.clips)


def _lamp_videos(scale: float) -> Callable[[Job, Any, Sequence[Any]], Videos]:
    def videos(job: Job, motion: Any, cases: Sequence[Any]) -> Videos:
        recipe = replace(job.recipe, motion_guidance=scale)
        return Sampler(job.toy, motion, recipe, job.seed).videos(cases, BATCH)

    return videos


# --- baselines --------------------------------------------------------------------------------


def _tune_a_video(job: Job) -> Motion:
    return TuneAVideo(map_unet(job.toy.unet)).initialise(job.seed)


def _tune_a_video_videos(job: Job, tuned: TuneAVideo, cases: Sequence[Any]) -> Videos:
    source = job.source.frames[0]

    def draw(part: Sequence[Any], seed: int) -> Tensor:
        prompts = [case.prompt for case in part]
        given = (job.toy, tuned, job.recipe, source, prompts, STEPS, job.guidance)
        return tune_a_video.videos_like(*given)

    return _in_parts(job, cases, draw)


def _animate_diff(job: Job) -> Motion:
    return AnimateDiff(map_unet(job.toy.unet), job.toy.unet).initialise(job.seed)


def _animate_diff_videos(job: Job, tuned: AnimateDiff, cases: Sequence[Any]) -> Videos:
    frames = len(cases[0].frames)

    def draw(part: Sequence[Any], seed: int) -> Tensor:
        prompts = [case.prompt for case in part]
        return animate_diff.videos_of(job.toy, tuned, prompts, frames, seed, STEPS, job.guidance)

    return _in_parts(job, cases, draw)


def _zero_videos(job: Job, _: None, cases: Sequence[Any]) -> Videos:
    frames = len(cases[0].frames)

    def draw(part: Sequence[Any], seed: int) -> Tensor:
        first = job.toy.encode(np.stack([case.first_frame for case in part]))
        prompts = [case.prompt for case in part]
        return text2video_zero.videos_from(job.toy, first, prompts, frames, seed, job.guidance)

    videos = _in_parts(job, cases, draw)
    videos[:, 0] = np.stack([case.first_frame for case in cases])  # as in LAMP's videos
    return videos


def _in_parts(
    job: Job, cases: Sequence[Any], draw: Callable[[Sequence[Any], int], Tensor]
) -> Videos:
    found = []
    for start in range(0, len(cases), BATCH):
        part = cases[start : start + BATCH]
        decoded = pictures(job.toy, draw(part, job.seed + start))
        found.append(decoded.reshape(len(part), -1, *decoded.shape[1:]))
    return np.concatenate(found)


# --- controls ---------------------------------------------------------------------------------


def _still_videos(job: Job, _: None, cases: Sequence[Any]) -> Videos:
    return np.stack([np.repeat(case.frames[:1], len(case.frames), axis=0) for case in cases])


def _true_videos(job: Job, _: None, cases: Sequence[Any]) -> Videos:
    return np.stack([case.frames for case in cases])


METHODS = {
    "Tune-A-Video": Method(
        "tune-a-video",
        _tune_a_video,
        lambda job: job.tuned(_tune_a_video(job), FreeTraining, job.source),
        _tune_a_video_videos,
    ),
    "T2V-Zero": Method("", None, None, _zero_videos),
    "AnimateDiff*": Method(
        "animate-diff",
        _animate_diff,
        lambda job: job.tuned(_animate_diff(job), FreeTraining, job.clips),
        _animate_diff_videos,
    ),
    "LAMP": Method("lamp", _lamp, _learn_lamp, _lamp_videos(1.0)),
    f"LAMP + motion guidance {MOTION_GUIDANCE:g}": Method(
        "lamp", _lamp, _learn_lamp, _lamp_videos(MOTION_GUIDANCE)
    ),
    "still first frame": Method("", None, None, _still_videos),
    "true videos": Method("", None, None, _true_videos),
}
