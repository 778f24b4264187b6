"""AdaIN and its schedule, against figures printed by the official code and supplement alg. 1."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule, adain

DATA = Path(__file__).parents[1] / "data"
FRAMES = 6


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return load_file(DATA / "adain.safetensors")


def to_batch(x: Tensor) -> Tensor:
    """``b c f h w`` -> ``(b f) c h w``."""
    return x.transpose(1, 2).flatten(0, 1)


def random_video(frames: int = FRAMES, videos: int = 1, seed: int = 0) -> Tensor:
    """Latents whose frames and channels all have statistics of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(videos * frames, 4, 8, 8, generator=generator)
    scale, shift = torch.rand(2, videos * frames, 4, 1, 1, generator=generator)
    return x * (0.5 + scale) + 3 * shift


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((-2, -1)), x.std((-2, -1))


def assert_follows(frame: Tensor, leader: Tensor) -> None:
    for ours, theirs in zip(statistics(frame), statistics(leader), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["adain0", "adain1", "adain_const"])
def test_adain_is_the_official_one(official, case):
    ours = adain(official[f"{case}.content"], official[f"{case}.style"])
    torch.testing.assert_close(ours, official[f"{case}.out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", [30, 31])
def test_official_step_of_the_loop(official, step):
    x = to_batch(official["loop_adain.in"])
    ours = AdaINSchedule("official").after_step(x, step, 50, FRAMES)
    expected = to_batch(official[f"loop_adain.i{step}"])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_official_last_adain(official):
    x = to_batch(official["loop_adain.in"])
    ours = AdaINSchedule("official").after_loop(x, FRAMES)
    torch.testing.assert_close(ours, to_batch(official["loop_adain.final"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [50, 100, 25, 10, 4])
def test_paper_switches_where_t_reaches_20_of_50(steps):
    schedule = AdaINSchedule("paper")
    by_algorithm = [t / steps > 20 / 50 for t in range(steps - 1, -1, -1)]
    assert [schedule.in_first_phase(step, steps) for step in range(steps)] == by_algorithm


def test_fifty_steps_divide_29_to_21_in_paper_and_31_to_19_in_official():
    for mode, first in (("paper", 29), ("official", 31)):
        schedule = AdaINSchedule(mode)
        assert sum(schedule.in_first_phase(step, 50) for step in range(50)) == first


def test_official_never_switches_in_few_steps():
    assert all(AdaINSchedule("official").in_first_phase(step, 31) for step in range(31))


def test_custom_switches_at_its_share():
    phases = [AdaINSchedule("custom", switch=0.25).in_first_phase(s, 20) for s in range(20)]
    assert phases == [True] * 5 + [False] * 15


def test_paper_targets():
    x = random_video()
    first = AdaINSchedule("paper").after_step(x, 0, 50, FRAMES)
    assert torch.equal(first[:2], x[:2])
    for frame in first[2:]:
        assert_follows(frame, x[1])
    second = AdaINSchedule("paper").after_step(x, 49, 50, FRAMES)
    for frame in second[1:]:
        assert_follows(frame, x[0])


@pytest.mark.parametrize("mode", ["paper", "official", "custom", "off"])
@pytest.mark.parametrize("step", [0, 49])
def test_frame_one_stays_to_the_bit_and_videos_apart(mode, step):
    x = random_video(videos=2)
    schedule = AdaINSchedule(mode)
    both = schedule.after_loop(schedule.after_step(x, step, 50, FRAMES), FRAMES)
    alone = schedule.after_loop(schedule.after_step(x[FRAMES:], step, 50, FRAMES), FRAMES)
    assert torch.equal(both[::FRAMES], x[::FRAMES])
    torch.testing.assert_close(both[FRAMES:], alone, rtol=0, atol=1e-6)


def test_off_and_the_paper_end_change_nothing():
    x = random_video()
    assert torch.equal(AdaINSchedule("off").after_step(x, 40, 50, FRAMES), x)
    for mode in ("off", "paper", "custom"):
        assert torch.equal(AdaINSchedule(mode).after_loop(x, FRAMES), x)


def test_strength_blends():
    x = random_video()
    full = AdaINSchedule("paper").after_step(x, 49, 50, FRAMES)
    part = AdaINSchedule("custom", second_strength=0.3).after_step(x, 49, 50, FRAMES)
    torch.testing.assert_close(part, 0.7 * x + 0.3 * full, rtol=0, atol=1e-5)
    none = AdaINSchedule("custom", second_strength=0.0).after_step(x, 49, 50, FRAMES)
    assert torch.equal(none, x)


@pytest.mark.parametrize("mode", ["paper", "official", "custom"])
@pytest.mark.parametrize("frames", [1, 2])
def test_videos_of_two_frames_are_unchanged_in_the_first_phase(mode, frames):
    x = random_video(frames)
    assert torch.equal(AdaINSchedule(mode).after_step(x, 0, 50, frames), x)


def test_one_frame_passes_every_mode():
    x = random_video(1)
    for mode in ("paper", "official", "custom"):
        schedule = AdaINSchedule(mode)
        assert torch.equal(schedule.after_loop(schedule.after_step(x, 49, 50, 1), 1), x)


def test_half_precision_does_not_divide_by_zero():
    content = torch.full((1, 4, 8, 8), 2.0, dtype=torch.float16)
    style = random_video(1).half()
    out = adain(content, style)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float().mean((-2, -1)), statistics(style.float())[0],
                               rtol=0, atol=1e-2)  # fmt: skip


def test_invalid_settings_are_refused():
    with pytest.raises(LampError, match="'late'"):
        AdaINSchedule("late")
    with pytest.raises(LampError, match="switch.*1.2"):
        AdaINSchedule("custom", switch=1.2)
    with pytest.raises(LampError, match="6"):
        AdaINSchedule().after_step(random_video(), 0, 50, 4)
