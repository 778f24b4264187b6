"""The amount of motion, cuts, and warnings about outliers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.samples.clip_files import sliding, texture, write_video
from lamp.clips.clip_set import ClipSet
from lamp.clips.load import clips_from_images, load_clips
from lamp.clips.movement import Movement, find_cuts, movement_hints
from lamp.clips.report import describe_clips

SIZE = {"width": 64, "height": 48}


def movement(batch: torch.Tensor, frames: int = 2, **settings: object) -> Movement:
    clips = clips_from_images([batch], "x", frames, **{**SIZE, **settings})
    return clips.sources[0].movement


def report_of(*batches: torch.Tensor) -> str:
    return describe_clips(clips_from_images(batches, "x", 2, **SIZE))


# --- optical flow ---------------------------------------------------------------------------


@pytest.fixture
def opencv() -> None:
    pytest.importorskip("cv2")


@pytest.mark.parametrize("step", [1, 2, 4])
def test_flow_is_the_known_shift_in_pixels_of_the_training_size(opencv, step):
    batch = sliding(8, step)
    assert movement(batch).flow == pytest.approx(step, rel=0.08)
    assert movement(batch, width=128, height=96).flow == pytest.approx(2 * step, rel=0.08)
    # Squeezed to a quarter of the width, and so is the motion along it.
    squeezed = movement(sliding(8, step, 256, 48), fit="stretch")
    assert squeezed.flow == pytest.approx(step / 4, rel=0.15, abs=0.05)


def test_flow_is_between_training_frames(opencv):
    assert movement(sliding(8, 1), stride=3).flow == pytest.approx(3, rel=0.08)
    halved = clips_from_images([sliding(8, 1)], "x", 2, rates=[10.0], fps=5.0, **SIZE)
    assert halved.sources[0].movement.flow == pytest.approx(2, rel=0.08)


def test_a_small_object_on_a_still_background_counts_with_its_speed(opencv):
    batch = torch.full((6, 48, 64, 3), 0.3)
    thing = torch.from_numpy(texture(20, 20, 5)).float() / 255
    for number in range(6):
        batch[number, 14:34, 6 + 3 * number : 26 + 3 * number] = thing
    assert movement(batch).flow == pytest.approx(3, rel=0.15)


def test_brightness_counts_as_change_not_motion(opencv):
    grey = torch.linspace(0.2, 0.8, 7)[:, None, None, None].expand(7, 48, 64, 3)
    found = movement(grey)
    assert found.flow == pytest.approx(0, abs=0.05)
    assert found.change == pytest.approx(10, abs=0.3)


def test_without_opencv_only_change_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    batch = sliding(6, 2)
    found = movement(batch)
    assert found.flow is None
    change = (batch[1:] - batch[:-1]).abs().mean().item() * 100
    assert found.change == pytest.approx(change, rel=0.1)
    report = report_of(batch)
    assert "motion" not in report.splitlines()[1] and f"change {found.change:.1f} %" in report
    assert "OpenCV" in report


def test_tiny_and_very_long_pictures_are_measured(opencv):
    """OpenCV's flow crashes the whole process on pictures of a few pixels."""
    for width, height in ((8, 8), (512, 8), (8, 512), (2048, 64)):
        found = movement(torch.rand(3, height, width, 3), width=width, height=height)
        assert found.flow is not None and np.isfinite(found.flow)


# --- cuts -----------------------------------------------------------------------------------


def shot(seed: int, count: int, step: int = 1) -> torch.Tensor:
    return sliding(count, step, seed=seed)


def cuts(batch: torch.Tensor, **settings: object) -> tuple[int, ...]:
    return movement(batch, **settings).cuts


def test_cuts_are_found_at_their_frame():
    assert cuts(torch.cat([shot(1, 9), shot(2, 12)])) == (9,)
    assert cuts(torch.cat([shot(1, 9), shot(2, 12), shot(3, 1)])) == (9, 21)
    assert cuts(torch.cat([shot(1, 1), shot(2, 12)])) == (1,)


def test_fast_motion_flashes_and_held_frames_do_not_count_as_cuts():
    assert cuts(shot(1, 20, step=9)) == ()
    flash = shot(1, 20).clone()
    flash[8] = 1.0
    assert cuts(flash) == ()
    assert cuts(shot(1, 8, step=9).repeat_interleave(4, 0)) == ()
    assert find_cuts([0.0]) == find_cuts([0.0, 0.9]) == ()


def test_steps_across_a_cut_do_not_count_as_motion():
    joined = movement(torch.cat([shot(1, 9), shot(2, 9)]), stride=2)
    assert joined.change == pytest.approx(movement(shot(1, 9), stride=2).change, rel=0.3)


def test_real_clips_joined_and_alone(shared_dir, tmp_path):
    folder = shared_dir / "data" / "clips"
    paths = [next((folder / name).glob("*.gif")) for name in ("horse_run", "helicopter")]
    clips = load_clips(paths, "", 8, 96, 64)
    assert [clip.movement.cuts for clip in clips.sources] == [(), ()]
    frames = torch.cat([torch.cat(list(clips.chunks(number)))[:12] for number in range(2)])
    film = write_video(tmp_path / "joined.mp4", list(frames.numpy()))
    joined = load_clips([film], "", 8, 96, 64)
    assert joined.sources[0].movement.cuts == (12,)
    assert len(joined.warnings) == 1
    assert "'joined.mp4'" in joined.warnings[0] and "frame 13" in joined.warnings[0]


# --- warnings --------------------------------------------------------------------------------


def test_clips_that_stand_out_are_named(opencv):
    still = sliding(1, 0).expand(6, 48, 64, 3)
    report = report_of(sliding(6, 1, seed=1), sliding(6, 1, seed=2), sliding(6, 6), still)
    warnings = [line for line in report.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 2
    assert warnings[0] == "Warning: 'clip 4' does not move at all."
    assert warnings[1].startswith("Warning: 'clip 3' moves far more than the others (")
    assert "motion 6." in report.splitlines()[3] and "motion 0.0 px" in report.splitlines()[4]


@pytest.mark.parametrize(
    ("flows", "words"),
    [
        ((3.0, 4.0, 5.0), []),
        ((3.0, 4.0, 0.5), ["'c' moves much less than the others (0.5 px, the others 3.5 px)"]),
        ((3.0, 12.0, 3.0), ["'b' moves far more than the others (12.0 px, the others 3.0 px)"]),
        ((3.0, 30.0), []),  # which of two is the odd one?
        ((None, None, None), ["'a' hardly moves", "'b' hardly moves", "'c' hardly moves"]),
        ((0.1, 0.1, 0.1), ["'a' hardly moves", "'b' hardly moves", "'c' hardly moves"]),
    ],
)
def test_hints(flows, words):
    found = movement_hints(list("abc")[: len(flows)], [Movement(flow, 0.1) for flow in flows])
    assert len(found) == len(words)
    assert all(hint.startswith(word) for hint, word in zip(found, words, strict=True))


def test_without_flow_clips_are_not_compared_by_their_colours():
    pale_and_strong = [Movement(None, change) for change in (1.5, 4.8, 4.9, 30.0)]
    assert movement_hints(list("abcd"), pale_and_strong) == []


def test_a_change_of_brightness_is_not_slow_motion(opencv):
    grey = torch.linspace(0.1, 0.9, 6)[:, None, None, None].expand(6, 48, 64, 3)
    moving = [sliding(6, 2, seed=seed) for seed in range(3)]
    assert "much less" not in report_of(*moving, grey)
    slow = sliding(6, 2)[:1] * 0.999 ** torch.arange(6.0)[:, None, None, None]
    assert "'clip 4' moves much less" in report_of(*moving, slow)


def test_real_motions_are_ordered_by_speed(opencv, shared_dir):
    """Horses run faster than guitars are played."""
    folder: Path = shared_dir / "data" / "clips"

    def amount(name: str) -> float:
        clips: ClipSet = load_clips(folder / name, "", 8, 128, 80, max_frames=10)
        return float(np.median([clip.movement.flow for clip in clips.sources]))

    assert amount("horse_run") > 2 * amount("play_the_guitar")
