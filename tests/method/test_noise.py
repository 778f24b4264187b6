"""Starting noise: the official values, and the formula of paper eq. 6."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lamp.errors import LampError
from lamp.method.noise import draw_noise, share_noise, split_videos

DATA = Path(__file__).parents[1] / "data"


def test_seeded_shared_noise_is_the_official_start():
    """What the official sampler starts from: 8 frames, seed 72, alpha 0.2."""
    official = load_file(DATA / "noise.safetensors")["init_latents"]  # b c f h w
    ours = share_noise(draw_noise(8, 4, 16, 16, seed=72))
    torch.testing.assert_close(ours[1:], official[0].transpose(0, 1)[1:], rtol=0, atol=1e-6)


def test_draw_follows_the_official_layout_for_several_videos():
    drawn = draw_noise(3, 4, 5, 6, seed=9, videos=2)
    torch.manual_seed(9)
    official = torch.randn(2, 4, 3, 5, 6)
    assert drawn.shape == (6, 4, 5, 6)
    for video in range(2):
        for frame in range(3):
            assert torch.equal(drawn[3 * video + frame], official[video, :, frame])


def test_draw_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    draw_noise(2, 4, 8, 8, seed=1)
    assert torch.equal(torch.rand(4), expected)


def test_draw_takes_the_largest_seed_of_the_host():
    largest = 2**64 - 1
    assert torch.equal(draw_noise(2, 4, 8, 8, largest), draw_noise(2, 4, 8, 8, largest))


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7, 1.0])
def test_share_is_the_formula_per_video(alpha):
    noise = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    shared = share_noise(noise, alpha, frames=3)
    for start in (0, 3):
        assert torch.equal(shared[start], noise[start])
        for frame in (start + 1, start + 2):
            expected = alpha * noise[start] + (1 - alpha) * noise[frame]
            torch.testing.assert_close(shared[frame], expected, rtol=0, atol=1e-6)


def test_shared_noise_keeps_the_reduced_variance():
    shared = share_noise(draw_noise(16, 4, 40, 64, seed=5))
    assert shared[0].var().item() == pytest.approx(1.0, abs=0.05)
    assert shared[1:].var().item() == pytest.approx(0.2**2 + 0.8**2, abs=0.02)


def test_share_does_not_write_to_its_input():
    noise = draw_noise(4, 4, 8, 8, seed=0)
    before = noise.clone()
    share_noise(noise)
    assert torch.equal(noise, before)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(LampError, match=f"alpha.*{alpha:g}"):
        share_noise(torch.zeros(2, 4, 8, 8), alpha)


def test_shared_noise_needs_two_frames():
    with pytest.raises(LampError, match="2 frames.*1"):
        share_noise(torch.zeros(1, 4, 8, 8))


def test_incomplete_videos_are_refused():
    with pytest.raises(LampError, match="7 .* 3 frames"):
        split_videos(torch.zeros(7, 4, 8, 8), 3)


@pytest.mark.parametrize("name", ["frames", "height", "videos"])
def test_sizes_must_be_positive(name):
    sizes = {"frames": 2, "channels": 4, "height": 8, "width": 8, "seed": 0} | {name: 0}
    with pytest.raises(LampError, match=f"{name}.*0"):
        draw_noise(**sizes)
