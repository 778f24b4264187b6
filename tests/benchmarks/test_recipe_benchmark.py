"""The benchmark of the recipes, with runs of a few steps."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from benchmarks.toy import recipe
from benchmarks.toy.recipe import GUIDED, is_faster, steps_to
from lamp.training.recipe import TrainConfig


def rows(**overlap: float) -> dict[int, dict[str, float]]:
    return {int(step[1:]): {"iou": value} for step, value in overlap.items()}


CURVES = {
    "paper": rows(_10=0.4),
    "paper wide": rows(_10=0.8),
    "fast": rows(_2=0.5),
    "muon": rows(_2=0.78),
}


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"fast": rows(_2=0.3), GUIDED["fast"]: rows(_2=0.9)}, False),
        ({"muon": rows(_2=0.76), GUIDED["muon"]: rows(_2=0.9)}, False),
        ({GUIDED["fast"]: rows(_2=0.1), GUIDED["muon"]: rows(_2=0.1)}, True),
    ],
)
def test_the_papers_recipes_must_be_reached_without_guidance(
    changes: dict[str, Any], passes: bool
) -> None:
    assert is_faster(CURVES | changes) == passes


def test_steps_to_an_overlap() -> None:
    curve = rows(_200=0.8, _50=0.5, _100=0.76)
    assert steps_to(curve, 0.75) == 100 and steps_to(curve, 0.9) is None


def test_each_length_of_fast_is_a_run_measured_with_and_without_guidance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[tuple[str, str, int]] = []

    class Run:
        motion, step = None, 0

        def advance(self) -> None:
            self.step += 1

    class FakeSampler:
        def __init__(self, toy: Any, motion: Any, recipe: Any, seed: int) -> None:
            self.scale = recipe.motion_guidance

        def videos(self, cases: Any) -> float:
            return self.scale

    def start(toy: Any, recipe: Any, seed: int, kind: str, settings: dict[str, Any]) -> Run:
        config = TrainConfig(**settings)
        trained.append((config.optimizer, config.rate_schedule, recipe.steps))
        return Run()

    monkeypatch.setattr(recipe, "start_training", start)
    monkeypatch.setattr(recipe, "Sampler", FakeSampler)
    monkeypatch.setattr(recipe, "measure", lambda scale, cases: {"iou": scale})
    toy: Any = None
    curves = recipe.run(toy, argparse.Namespace(steps=100, cases=1), 0)
    short = (5, 10, 20)
    wanted = [("adamw", "constant", 100)] * 2 + [("adamw", "cosine", n) for n in short]
    assert trained == wanted + [("muon", "cosine", n) for n in short]
    assert list(curves["paper"]) == list(curves["paper wide"]) == [20, 40, 60, 80, 100]
    for name, guided in GUIDED.items():
        assert list(curves[name]) == list(curves[guided]) == [5, 10, 20]
    for name, curve in curves.items():
        guided = name in GUIDED.values()
        assert all((row["iou"] > 1.0) == guided for row in curve.values())
