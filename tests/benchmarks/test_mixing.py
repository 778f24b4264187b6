"""The benchmark of two motions at once: its cases, figures and weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.toy.mixing import WAYS, WEIGHTS, film, label, measure, mixed_cases, passes
from benchmarks.toy.runs import RECIPES
from lamp.method.motion import ActiveMotion
from lamp.toy.base import load_toy_base
from lamp.toy.cases import Case, split_pairs
from lamp.toy.shapes import SHAPES
from lamp.toy.world import OBJECT_COLOURS, SIZE
from tests.helpers.small_models import random_motion


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return mixed_cases(0, 8)


def test_objects_are_unseen_pairs_that_stay_inside_the_picture(cases: list[Case]) -> None:
    seen = {tuple(pair) for pair in split_pairs(0).clips.tolist()}
    for case in cases:
        scenes = case.targets[0].scenes
        assert (scenes.shape[0], scenes.colour[0]) not in seen
        words = f"{list(OBJECT_COLOURS)[scenes.colour[0]]} {SHAPES[scenes.shape[0]]}"
        assert words in case.caption
        assert ((scenes.x + scenes.radius < SIZE) & (scenes.x > scenes.radius)).all()
        np.testing.assert_allclose(np.diff(scenes.x), 2.0)
        np.testing.assert_allclose(np.diff(scenes.radius), 0.45)


def test_the_truth_does_both_and_a_still_picture_neither(cases: list[Case]) -> None:
    for case in cases:
        truth = measure(case.frames, case)
        assert truth["way"] == pytest.approx(1.0, abs=0.05)
        assert truth["growth"] == pytest.approx(1.0, abs=0.1)
        assert truth["both"] == truth["seen"] == 1.0
        still = measure(np.repeat(case.frames[:1], 8, axis=0), case)
        assert still["way"] == pytest.approx(0.0, abs=1e-6)
        assert still["growth"] == pytest.approx(0.0, abs=1e-6) and still["both"] == 0.0


def test_half_the_way_is_half(cases: list[Case]) -> None:
    case = cases[0]
    slow = case.frames[[0, 0, 1, 1, 2, 2, 3, 3]]
    found = measure(slow, case)
    assert found["way"] == pytest.approx(0.45, abs=0.1)
    assert found["growth"] == pytest.approx(0.45, abs=0.15) and found["both"] == 0.0


def test_a_lost_object_is_not_seen(cases: list[Case]) -> None:
    video = cases[0].frames.copy()
    video[4:] = np.rint(cases[0].ground).astype(np.uint8)
    assert measure(video, cases[0])["seen"] == 0.5


def row(way: float, growth: float) -> dict[str, float]:
    return {"way": way, "growth": growth, "both": 0.0, "seen": 1.0}


def test_it_passes_only_if_each_acts_alone_and_by_its_weight() -> None:
    table = {label(weights): row(*weights) for weights in WEIGHTS}
    assert passes(table)
    assert passes(table | {"1, 1": row(0.6, 0.7)})
    assert not passes(table | {"1, 1": row(1.0, 0.5)})
    assert not passes(table | {"0.5, 1": row(0.0, 1.0)})
    assert not passes(table | {"1, 0": row(0.4, 0.0)})


@pytest.mark.slow
def test_a_motion_without_weight_is_not_there() -> None:
    toy, cases = load_toy_base(), mixed_cases(0, 1)
    first, second = (random_motion(toy.unet, seed) for seed in (1, 2))
    recipe = replace(RECIPES["grow"], sample_steps=2)
    draw = lambda acting: film(toy, acting, cases, recipe, 0).astype(int)  # noqa: E731
    alone, other = draw([ActiveMotion(first)]), draw([ActiveMotion(second)])
    assert np.abs(alone - other).max() > 20
    for way in WAYS.values():
        assert np.abs(draw(way(toy, (first, second), (1.0, 0.0))) - alone).max() <= 1
        assert np.abs(draw(way(toy, (first, second), (0.0, 1.0))) - other).max() <= 1
        assert np.abs(draw(way(toy, (first, second), (1.0, 1.0))) - alone).max() > 5
