"""The benchmark of masks, on videos with known figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.toy.masks import kept, measure, painted
from benchmarks.toy.runs import FIRST, average
from lamp.method.masks import MotionMask
from lamp.toy.cases import Case, evaluation_cases
from lamp.toy.score import static_video


@pytest.fixture(scope="module")
def case() -> Case:
    return evaluation_cases(0, "combination", FIRST, 1)[0]


def figures_of(video: Any, case: Case, motion_mask: MotionMask | None = None) -> Any:
    return measure(video, case, motion_mask, case.frames)


def test_the_truth_has_no_error_and_travels_as_it_should(case: Case) -> None:
    figures = figures_of(case.frames, case)
    assert figures["error"] < 0.01 and figures["overlap"] > 0.95
    assert figures["travel"] == pytest.approx(1.0, abs=0.05) and figures["white"] is None
    assert figures_of(static_video(case), case)["travel"] == 0.0


def test_the_error_is_the_mean_square_off_the_object(case: Case) -> None:
    video = case.frames.copy()
    video[1:] = np.where(video[1:] < 128, video[1:] + 4, video[1:] - 4)
    assert figures_of(video, case)["error"] == pytest.approx(16.0)


def test_the_painted_mask_covers_the_path_and_a_margin(case: Case) -> None:
    mask, path = painted(case), case.targets[0].masks.any(0)
    assert (mask[torch.from_numpy(path)] == 1).all() and set(mask.unique().tolist()) == {0.0, 1.0}
    assert path.mean() < mask.mean() < 0.8
    figures = figures_of(case.frames, case, MotionMask(mask))
    assert figures["white"] == pytest.approx(mask.mean().item())


def test_halved_errors_and_a_kept_motion_pass() -> None:
    plain: dict[str, Any] = {"share": 1.0, "overlap": 0.8, "travel": 1.1}
    assert kept({"share": 0.5, "overlap": 0.77, "travel": 1.15}, plain)
    assert not kept({"share": 0.51, "overlap": 0.8, "travel": 1.1}, plain)
    assert not kept({"share": 0.1, "overlap": 0.75, "travel": 1.1}, plain)
    assert not kept({"share": 0.1, "overlap": 0.8, "travel": 1.2}, plain)
    assert not kept(plain, plain)


def test_means_leave_out_what_is_not_there() -> None:
    assert average([{"a": 1.0, "b": None}, {"a": 3.0, "b": None}]) == {"a": 2.0, "b": None}
