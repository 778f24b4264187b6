"""The benchmark of the recipes, with runs of a few steps."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from benchmarks.toy import recipe
from benchmarks.toy.recipe import GUIDED, is_faster, steps_to


def rows(**overlap: float) -> dict[int, dict[str, float]]:
    return {int(step[1:]): {"iou": value} for step, value in overlap.items()}


def test_fast_must_reach_both_recipes_of_the_paper_without_guidance() -> None:
    curves = {"paper": rows(_10=0.4), "paper wide": rows(_10=0.8), "fast": rows(_2=0.78)}
    assert is_faster(curves | {GUIDED: rows(_2=0.7)})
    assert not is_faster(curves | {"fast": rows(_2=0.76), GUIDED: rows(_2=0.9)})


def test_steps_to_an_overlap() -> None:
    curve = rows(_200=0.8, _50=0.5, _100=0.76)
    assert steps_to(curve, 0.75) == 100 and steps_to(curve, 0.9) is None


def test_each_length_of_fast_is_a_run_measured_with_and_without_guidance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[tuple[str, int]] = []

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
        trained.append((settings.get("rate_schedule", "constant"), recipe.steps))
        return Run()

    monkeypatch.setattr(recipe, "start_training", start)
    monkeypatch.setattr(recipe, "Sampler", FakeSampler)
    monkeypatch.setattr(recipe, "measure", lambda scale, cases: {"iou": scale})
    toy: Any = None
    curves = recipe.run(toy, argparse.Namespace(steps=100, cases=1), 0)
    assert trained == [("constant", 100)] * 2 + [("cosine", n) for n in (5, 10, 20)]
    assert list(curves["paper"]) == list(curves["paper wide"]) == [20, 40, 60, 80, 100]
    assert list(curves["fast"]) == list(curves[GUIDED]) == [5, 10, 20]
    assert all(
        row["iou"] == 1.0 for name in curves if name != GUIDED for row in curves[name].values()
    )
    assert all(row["iou"] > 1.0 for row in curves[GUIDED].values())
