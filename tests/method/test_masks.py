"""Motion masks: masks, strengths per frame, and frame 1 held outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import map_unet
from lamp.method.host import Host
from lamp.method.layers import MotionConv
from lamp.method.layout import FrameLayout
from lamp.method.masks import MotionMask, feather_masks, hold_first_frame, parse_strengths
from lamp.method.motion import ActiveMotion, Motion
from lamp.method.sampling import sample
from lamp.method.windows import Windows
from tests.helpers.small_models import TEXT_WIDTH, hook_count, random_motion

FRAMES = 3


@torch.no_grad()
def predict(host: Host, motion: Motion, videos: int = 2, **how) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(videos * FRAMES, 4, 16, 8, generator=generator)
    text = torch.randn(videos, 7, TEXT_WIDTH, generator=generator)
    with motion.attached(host.unet, FrameLayout(FRAMES, videos), **how):
        return host.predict(x, torch.tensor([500] * videos), text)


def random_mask(frames: int = 1, height: int = 64, width: int = 32) -> Tensor:
    mask = torch.rand(frames, height, width, generator=torch.Generator().manual_seed(8))
    return mask if frames > 1 else mask[0]


# --- the residuals ----------------------------------------------------------------------------


def test_a_mask_of_ones_changes_nothing_bit_for_bit(host: Host) -> None:
    motion = random_motion(host.unet)
    for strength in (1.0, 0.7):
        without = predict(host, motion, strength=strength)
        for ones in (torch.ones(9, 5), torch.ones(FRAMES, 64, 32)):
            motion_mask = MotionMask(ones, feather=0.3, strengths=[1.0, 1.0])
            assert torch.equal(
                predict(host, motion, strength=strength, motion_mask=motion_mask), without
            )


def test_a_mask_of_zeros_is_strength_zero_bit_for_bit(host: Host) -> None:
    motion = random_motion(host.unet)
    still = predict(host, motion, strength=0.0)
    assert torch.equal(predict(host, motion, motion_mask=MotionMask(torch.zeros(64, 32))), still)
    assert torch.equal(predict(host, motion, motion_mask=MotionMask(strengths=[0.0])), still)
    assert not torch.allclose(predict(host, motion), still, atol=1e-3)


def test_an_even_mask_and_even_strengths_are_a_strength(host: Host) -> None:
    motion = random_motion(host.unet)
    half = predict(host, motion, strength=0.4)
    for motion_mask in (MotionMask(torch.full((7, 9), 0.5)), MotionMask(strengths=[0.5] * FRAMES)):
        ours = predict(host, motion, strength=0.8, motion_mask=motion_mask)
        torch.testing.assert_close(ours, half, rtol=1e-5, atol=1e-5)


def test_a_single_layer_is_left_alone_outside_of_the_mask() -> None:
    layer = MotionConv(4)
    y = torch.randn(2 * FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1.0
    factor = MotionMask(mask).for_features(y, FrameLayout(FRAMES, 2))
    with torch.no_grad():
        out, everywhere = layer(y, FRAMES, factor), layer(y, FRAMES)
    assert torch.equal(out[..., :4], y[..., :4])
    assert torch.equal(out[..., 4:], everywhere[..., 4:])
    assert not torch.equal(everywhere[..., :4], y[..., :4])


def test_masks_and_strengths_per_frame_follow_their_frames() -> None:
    y = torch.zeros(2 * FRAMES, 4, 6, 5)
    masks = torch.stack([torch.full((6, 5), value) for value in (0.0, 0.25, 1.0)])
    motion_mask = MotionMask(masks, strengths=[2.0, 4.0])
    layout = FrameLayout(FRAMES, 2)
    expected = [0.0, 0.75, 4.0]  # 0 * 2, 0.25 * 3, 1 * 4
    assert motion_mask.for_features(y, layout)[:, 0, 0, 0].tolist() == pytest.approx(expected * 2)
    tokens = motion_mask.for_tokens(torch.zeros(2 * FRAMES, 30, 4), layout, (6, 5))
    assert tokens.shape == (2 * FRAMES, 30, 1)
    assert tokens[:, 7, 0].tolist() == pytest.approx(expected * 2)
    # frames 1 and 6 of a video of six: 2 and 4
    window = FrameLayout(2, 2, frame_indices=(0, 5), total=6)
    few = MotionMask(strengths=[2.0, 4.0]).for_features(torch.zeros(4, 4, 6, 5), window)
    assert few.flatten().tolist() == pytest.approx([2.0, 4.0] * 2)


def test_tokens_and_features_get_the_same_factors() -> None:
    mask = random_mask(height=6, width=5)
    layout = FrameLayout(FRAMES)
    pixels = MotionMask(mask).for_features(torch.zeros(FRAMES, 4, 6, 5), layout)
    tokens = MotionMask(mask).for_tokens(torch.zeros(FRAMES, 30, 4), layout, (6, 5))
    assert torch.equal(pixels[0, 0], mask)
    assert torch.equal(tokens.unflatten(1, (6, 5))[0, ..., 0], mask)


def test_resizing_takes_the_mean() -> None:
    """Every value of a smaller grid is a mean of what lies there: a speck is not lost."""
    mask = torch.zeros(64, 64)
    mask[30, 30] = 1.0
    small = MotionMask(mask).for_features(torch.zeros(1, 4, 8, 8), FrameLayout(1))
    assert small.max() < 0.05 and small.sum().item() * 64 == pytest.approx(1.0, rel=0.05)
    wide = torch.zeros(64, 64)
    wide[:, 32:] = 1.0
    edge = MotionMask(wide).for_features(torch.zeros(1, 4, 8, 8), FrameLayout(1))[0, 0, 0]
    assert edge[2] == 0.0 and edge[5] == 1.0 and (edge.diff() >= 0).all()


def test_both_hosts_agree_under_a_mask(comfy, hosts: Callable[[str], Host]) -> None:
    ours, theirs = hosts("diffusers"), hosts("comfy")
    first = random_motion(ours.unet)
    second = Motion(map_unet(theirs.unet))
    second.load_state_dict(first.state_dict())
    motion_mask = MotionMask(random_mask(FRAMES), feather=0.05, strengths=[1.0, 0.3])
    one = predict(ours, first, motion_mask=motion_mask)
    torch.testing.assert_close(
        predict(theirs, second, motion_mask=motion_mask), one, rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(predict(ours, first), one, atol=1e-3)


def test_no_hook_remains(host: Host) -> None:
    before = hook_count(host.unet)
    predict(host, random_motion(host.unet), motion_mask=MotionMask(random_mask()))
    assert hook_count(host.unet) == before


# --- sampling -----------------------------------------------------------------------------------


def video(host: Host, frames: int = FRAMES, **how) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(1, 4, 16, 8, generator=generator)
    noise = torch.randn(frames, 4, 16, 8, generator=generator)
    text = torch.randn(1, 7, TEXT_WIDTH, generator=generator)
    schedule = AdaINSchedule("off")
    motion = random_motion(host.unet)
    return first, sample(host, motion, first, noise, text, steps=3, schedule=schedule, **how)


def test_the_picture_outside_of_the_mask_is_held(hosts: Callable[[str], Host]) -> None:
    host = hosts("diffusers")
    mask = torch.zeros(16, 8)
    mask[:, 4:] = 1.0
    first, out = video(host, motion_mask=MotionMask(mask))
    # The last step ends at alphas[0], a trace of noise above the clean picture.
    trace = (1 - host.alphas_cumprod[0]).sqrt() * 5
    assert (out[1:, ..., :4] - first[..., :4]).abs().max() < trace
    assert (out[1:, ..., 4:] - first[..., 4:]).abs().max() > 10 * trace
    _, free = video(host, motion_mask=MotionMask(mask, hold=0.0))
    assert (free[1:, ..., :4] - first[..., :4]).abs().max() > 10 * trace
    off = ActiveMotion(random_motion(host.unet, seed=9), strength=0.0)
    assert torch.equal(video(host, motion_mask=MotionMask(mask), others=[off])[1], out)


class _Divisions(TorchDispatchMode):
    """How often something of a video's shape is divided."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += func is torch.ops.aten.div.Tensor and out.shape == (FRAMES, 4, 16, 8)
        return out


def test_what_is_not_held_costs_nothing(hosts: Callable[[str], Host]) -> None:
    """A step of DDIM divides once, for the clean picture that it goes through."""
    host, counts = hosts("diffusers"), []
    for motion_mask in (None, MotionMask(strengths=[0.5]), MotionMask(random_mask(), hold=0.0)):
        with _Divisions() as divisions:
            video(host, motion_mask=motion_mask)
        counts.append(divisions.count)
    assert counts == [3, 3, 3]


def test_holding_is_a_mean_of_the_prediction_and_frame_1() -> None:
    predicted, first = torch.rand(2 * FRAMES, 4, 8, 8), torch.rand(2, 4, 8, 8)
    mask = random_mask(height=8, width=8)
    still = first.repeat_interleave(FRAMES, 0)
    share = 0.5 + 0.5 * mask
    half = hold_first_frame(predicted, first, [MotionMask(mask, hold=0.5)])
    torch.testing.assert_close(half, share * predicted + (1 - share) * still)
    black = MotionMask(torch.zeros(4, 4))
    assert torch.equal(hold_first_frame(predicted, first, [black]), still)
    assert torch.equal(hold_first_frame(predicted, first, [MotionMask(strengths=[0.5])]), predicted)
    assert torch.equal(hold_first_frame(predicted, first, [black, None]), predicted)
    both = hold_first_frame(predicted, first, [black, MotionMask(mask), MotionMask(mask.flip(-1))])
    share = torch.maximum(mask, mask.flip(-1))
    torch.testing.assert_close(both, share * predicted + (1 - share) * still)


def test_windows_show_each_frame_its_own_mask(hosts: Callable[[str], Host]) -> None:
    """Frames 5 to 7 lie in the second window, 2 to 4 in the first: the masks of each matter there
    alone."""
    host, windows = hosts("diffusers"), Windows(4, 0)
    masks = torch.rand(7, 16, 8, generator=torch.Generator().manual_seed(3))
    other = torch.cat([masks[:4], torch.zeros(3, 16, 8)])
    assert windows.frame_indices(7) == [[0, 1, 2, 3], [0, 4, 5, 6]]
    one = video(host, 7, windows=windows, motion_mask=MotionMask(masks, hold=0.0))[1]
    two = video(host, 7, windows=windows, motion_mask=MotionMask(other, hold=0.0))[1]
    changed = (one - two).abs().amax((1, 2, 3)) > 0
    assert changed.tolist() == [False] * 4 + [True] * 3


# --- what is given --------------------------------------------------------------------------------


def test_edges_fade_to_both_sides() -> None:
    mask = torch.zeros(1, 40, 40)
    mask[..., 20:] = 1.0
    soft = feather_masks(mask, 0.1)[0]
    assert torch.equal(soft[0], soft[-1]) and (soft[0].diff() >= 0).all()
    assert soft[0, 15] == 0.0 and soft[0, 24] == pytest.approx(1.0)
    assert 0.2 < soft[0, 19] < 0.5 < soft[0, 20] < 0.8
    assert soft.mean().item() == pytest.approx(0.5, abs=1e-6)
    torch.testing.assert_close(feather_masks(mask.transpose(1, 2), 0.1)[0], soft.T)
    assert torch.equal(feather_masks(mask, 0.0), mask)


def test_few_strengths_are_interpolated() -> None:
    """As numpy does."""
    factor = MotionMask(strengths=[1, 3, 0]).for_features(torch.zeros(9, 4, 2, 2), FrameLayout(9))
    expected = np.interp(np.linspace(0, 2, 9), [0, 1, 2], [1, 3, 0])
    np.testing.assert_allclose(factor.flatten().numpy(), expected, rtol=1e-6)
    exact = MotionMask(strengths=[5, 0.1, 2]).for_features(torch.zeros(3, 4, 2, 2), FrameLayout(3))
    assert torch.equal(exact.flatten(), torch.tensor([5, 0.1, 2]))


def test_strengths_are_read_from_text() -> None:
    assert parse_strengths(" 1, 1.5;0\n-.5 2e-1,") == [1.0, 1.5, 0.0, -0.5, 0.2]
    assert parse_strengths("  ") == []
    with pytest.raises(LampError, match="'1, two'"):
        parse_strengths("1, two")


def test_masks_and_strengths_that_do_not_fit_are_refused(hosts: Callable[[str], Host]) -> None:
    host = hosts("diffusers")
    with pytest.raises(LampError, match="2 masks.*3 frames"):
        video(host, motion_mask=MotionMask(torch.zeros(2, 8, 8)))
    with pytest.raises(LampError, match="4 strengths.*3 frames"):
        video(host, motion_mask=MotionMask(strengths=[1, 2, 3, 4]))
    for broken in (torch.tensor([[float("nan")]]), torch.zeros(0, 4, 4), torch.zeros(3)):
        with pytest.raises(LampError, match="mask"):
            MotionMask(broken)
    for strengths in ([], [float("inf")]):
        with pytest.raises(LampError, match="strengths"):
            MotionMask(strengths=strengths)


def test_a_mask_refuses_tokens_split_by_another_patch() -> None:
    tiles = torch.zeros(4 * FRAMES, 8, 4)
    with pytest.raises(LampError, match="HyperTile"):
        MotionMask(torch.zeros(8, 8)).for_tokens(tiles, FrameLayout(FRAMES), (8, 4))
    factor = MotionMask(strengths=[1, 0, 2]).for_tokens(tiles, FrameLayout(FRAMES), (8, 4))
    assert factor.flatten().tolist() == [1] * 4 + [0] * 4 + [2] * 4
