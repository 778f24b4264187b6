"""ControlNets with a hint for each frame, by the host's own node."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import conditioning, count_hooks, moving, worst
from benchmarks.samples.ecosystem import FRAMES, PATCHES, sample
from benchmarks.samples.tiny_models import random_motion, video_latent
from benchmarks.samples.tiny_patches import tiny_control
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode"),
    pytest.mark.slow,  # many of them
]


@pytest.fixture(scope="module")
def control(plain: Any) -> Any:
    return tiny_control(plain)


def hints(changed: int | None = None, frames: int = FRAMES) -> Tensor:
    """Pictures `f h w 3`, one of which may be another one."""
    generator = torch.Generator().manual_seed(4)
    pictures = torch.rand(frames, 64, 64, 3, generator=generator)
    if changed is not None:
        pictures[changed] = torch.rand(64, 64, 3, generator=generator)
    return pictures


def guided(control: Any, pictures: Tensor, **options: Any) -> Any:
    """The prompt with the pictures, by ControlNetApplyAdvanced."""
    import nodes

    settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **options}
    node = nodes.ControlNetApplyAdvanced()
    positive, _ = node.apply_controlnet(*conditioning(), control, pictures, **settings)
    return positive


def difference(a: Tensor, b: Tensor) -> list[float]:
    return [worst(x, y) for x, y in zip(a, b, strict=True)]


def test_each_frame_follows_its_own_hint(plain: Any, control: Any) -> None:
    """Frames that share nothing: what a hint changes is its frame, to the bit."""
    fresh = random_motion(plain, size=0.0)
    model = moving(plain, fresh, groupnorm="frame", first_frame=False, alpha=0.0)
    usual = sample(model, positive=guided(control, hints()))
    for frame in range(1, FRAMES):
        other = sample(model, positive=guided(control, hints(frame)))
        changed = [change > 0 for change in difference(other, usual)]
        assert changed == [number == frame for number in range(FRAMES)]


def test_hints_and_motion_act_together(plain: Any, file: MotionFile, control: Any) -> None:
    model, positive = moving(plain, file), guided(control, hints())
    out = sample(model, positive=positive)
    assert torch.equal(out[0], video_latent()[0]) and out.isfinite().all()
    assert torch.equal(sample(model, positive=positive), out)
    assert worst(sample(model), out) > 1e-3
    assert worst(sample(moving(plain, file, strength=0.0), positive=positive), out) > 1e-3
    for frame in range(1, FRAMES):
        changes = difference(sample(model, positive=guided(control, hints(frame))), out)
        assert changes.index(max(changes)) == frame and changes[0] == 0
    patch = PATCHES["FreeU_V2"]
    after = sample(patch(model), positive=positive)
    assert torch.equal(after, sample(moving(patch(plain), file), positive=positive))
    assert worst(after, out) > 1e-3
    assert count_hooks(plain) == 0


def test_the_hint_of_frame_1_counts_through_its_keys(plain: Any, control: Any) -> None:
    """The other frames look at frame 1 (paper eq. 5), which its own hint steers, too."""
    fresh = random_motion(plain, size=0.0)
    positives = [guided(control, hints()), guided(control, hints(0))]
    for first_frame in (False, True):
        model = moving(plain, fresh, groupnorm="frame", first_frame=first_frame)
        usual, other = (sample(model, positive=positive) for positive in positives)
        assert torch.equal(usual, other) != first_frame


def test_one_hint_serves_all_frames_and_fewer_hints_repeat(
    plain: Any, file: MotionFile, control: Any
) -> None:
    model = moving(plain, file)
    one, three = hints(frames=1), hints(frames=3)
    for pictures, same in (
        (one, one.repeat(FRAMES, 1, 1, 1)),
        (three, torch.cat([three, three])[:FRAMES]),
    ):
        few, many = (sample(model, positive=guided(control, each)) for each in (pictures, same))
        assert worst(few, many) < 1e-5


def test_a_hint_for_a_part_of_the_steps(plain: Any, file: MotionFile, control: Any) -> None:
    model = moving(plain, file)
    run = {
        end: sample(model, steps=4, positive=guided(control, hints(), end_percent=end))
        for end in (0.0, 0.5, 1.0)
    }
    assert worst(run[0.5], run[0.0]) > 1e-3 < worst(run[0.5], run[1.0])


@pytest.mark.slow
def test_windows_cut_the_hints_with_the_frames(plain: Any, file: MotionFile, control: Any) -> None:
    from lamp.hosts.comfy.windows import with_windows
    from lamp.method.windows import Windows

    video = video_latent(7)
    fresh = random_motion(plain, size=0.0)
    options = {"groupnorm": "frame", "first_frame": False, "alpha": 0.0}
    whole = moving(plain, fresh, **options)
    # frames that share nothing come out the same, however they are cut
    pieces = with_windows(whole, Windows(4, 1))
    positive = guided(control, hints(frames=7))
    at_once, cut = (sample(m, samples=video, positive=positive) for m in (whole, pieces))
    assert worst(cut, at_once) < 1e-4
    moved = with_windows(moving(plain, file), Windows(4, 1))
    out = sample(moved, samples=video, positive=positive)
    assert torch.equal(out[0], video[0]) and worst(out, at_once) > 1e-3


@pytest.mark.parametrize("enough_memory", [True, False])
@pytest.mark.parametrize("times", [2, 3])
def test_hints_beyond_the_frames_are_dropped(
    plain: Any,
    file: MotionFile,
    control: Any,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    enough_memory: bool,
) -> None:
    """Also where their number is that of the frames of all prompts together, in one call."""
    many = hints(frames=times * FRAMES)
    model = moving(plain, file)
    if not enough_memory:
        monkeypatch.setattr(model.model, "memory_required", lambda *_, **__: 1e30)
    for count in range(1, times):  # so many prompts beside the negative one
        found = [
            sample(model, cfg=3.0, positive=count * guided(control, pictures))
            for pictures in (many, many[:FRAMES])
        ]
        assert torch.equal(*found)
