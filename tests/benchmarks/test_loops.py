"""The benchmark of loops, on videos with known figures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.toy.loops import KIND, SWING, holds, measure
from lamp.toy.cases import Case, evaluation_cases


@pytest.fixture(scope="module")
def case() -> Case:
    return evaluation_cases(0, "combination", KIND, 1, frames=2 * SWING)[0]


def test_the_truth_is_seamless_and_a_still_video_does_not_pass(case: Case) -> None:
    figures = measure(case.frames, case)
    assert figures["jump"] == figures["truth"] <= 1.05
    assert figures["travel"] == pytest.approx(1.0, abs=0.05) and figures["seen"] == 1.0
    still = np.repeat(case.frames[:1], len(case.frames), axis=0)
    assert not holds(measure(still, case), whole=True)


def test_a_video_that_ends_far_from_frame_1_jumps(case: Case) -> None:
    """The last frame is moved 9 pixels up, on the same ground."""
    video = case.frames.copy()
    shown, mask = (np.roll(x[-1], -9, axis=0) for x in (video, case.targets[0].masks))
    ground = np.rint(case.ground).astype(np.uint8)
    video[-1] = np.where(mask[..., None], shown, ground)
    moved = measure(video, case)
    assert moved["jump"] is not None and moved["jump"] > 0.9
    slow = case.frames[[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]]
    jump = measure(slow, case)["jump"]
    assert jump is not None and jump > 1.3
    assert not holds(measure(slow, case), whole=False)
