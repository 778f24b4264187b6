"""The benchmark of long videos, on videos with known figures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.toy.control import (
    KIND,
    METHODS,
    MOST_JUMP,
    PACE,
    compare,
    holds,
    measure,
    periods,
)
from benchmarks.toy.runs import RECIPES, Sampler, fresh_motion
from lamp.toy.base import load_toy_base
from lamp.toy.cases import Case, evaluation_cases

SEAMS = [7, 14, 21]


@pytest.fixture(scope="module")
def case() -> Case:
    return evaluation_cases(0, "combination", KIND, 1, frames=24)[0]


def test_the_truth_has_no_seams_and_does_not_drift(case: Case) -> None:
    figures = measure(case.frames, case, SEAMS)
    assert figures["seen"] == 1.0
    assert figures["travel"] == pytest.approx(1.0, abs=0.1)
    assert figures["jump"] == pytest.approx(figures["truth"], abs=0.2)
    assert all(figures[f"dB {start + 1}-{end}"] > 40 for start, end in periods(24))
    assert holds(figures | {"rows": 8.0}) and not holds(figures | {"rows": 24.0})


def test_a_teleport_at_the_seams_is_a_jump(case: Case) -> None:
    video = case.frames.copy()
    ground = np.rint(case.ground).astype(np.uint8)
    for start in (8, 22):  # objects 9 pixels higher or lower, on the same ground
        shown = np.roll(video[start : start + 7], 9, axis=1)
        mask = np.roll(case.targets[0].masks[start : start + 7], 9, axis=1)
        video[start : start + 7] = np.where(mask[..., None], shown, ground)
    figures = measure(video, case, SEAMS)
    assert figures["jump"] > 2 * figures["truth"]
    assert not holds(figures | {"rows": 8.0})
    assert measure(video, case, [])["jump"] is None


def test_a_lost_object_and_a_brighter_ground_show(case: Case) -> None:
    video = case.frames.copy()
    video[12:] = np.rint(case.ground).astype(np.uint8)
    lost = measure(video, case, SEAMS)
    assert lost["seen"] == 0.5 and not holds(lost | {"rows": 8.0})
    brighter = case.frames.copy()
    brighter[8:16] = np.minimum(brighter[8:16].astype(int) + 5, 255)
    figures = measure(brighter, case, SEAMS)
    assert figures["dB 9-16"] == pytest.approx(10 * np.log10(255**2 / 25), abs=0.5)
    assert figures["dB 2-8"] > 40 and figures["dB 17-24"] > 40


def test_a_perfect_extension_passes_because_clips_end_where_they_begin() -> None:
    """It repeats the clip's steps from the last frame, here on the truth."""

    def extension(pace: float) -> tuple[Case, np.ndarray]:
        (case,) = evaluation_cases(0, "combination", KIND, 1, frames=36, pace=pace)
        places = case.targets[0].scenes.x
        steps = np.diff(places[:8])
        wanted = np.concatenate([places[:1], places[0] + np.cumsum(np.tile(steps, 5))])
        shift = np.rint(wanted - places).astype(int)
        ground = np.rint(case.ground).astype(np.uint8)
        video = []
        for frame, mask, dx in zip(case.frames, case.targets[0].masks, shift, strict=True):
            shown = np.roll(mask, dx, axis=1)[..., None]
            video.append(np.where(shown, np.roll(frame, dx, axis=1), ground))
        return case, np.stack(video)

    seams = [7, 14, 21, 28]
    case, video = extension(PACE)
    assert holds(measure(video, case, seams) | {"rows": 8.0})
    case, video = extension(1.0)
    figures = measure(video, case, seams)
    assert figures["jump"] > max(MOST_JUMP, figures["truth"]) and not holds(figures | {"rows": 8.0})


def test_periods_double() -> None:
    assert periods(64) == [(1, 8), (8, 16), (16, 32), (32, 64)]
    assert periods(8) == [(1, 8)] and periods(24)[-1] == (16, 24)


@pytest.mark.slow
def test_every_method_draws_all_frames_in_calls_of_its_size() -> None:
    toy = load_toy_base()
    recipe = replace(RECIPES[KIND], sample_steps=1)
    sampler = Sampler(toy, fresh_motion(toy, 0).requires_grad_(False), recipe)
    cases = evaluation_cases(0, "combination", KIND, 1, frames=17)
    figures = compare(sampler, cases, 17)
    rows = {name: figures[name]["rows"] for name in METHODS}
    assert rows.pop("at once") == 17
    assert set(rows.values()) == {8}
