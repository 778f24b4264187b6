"""Properties for arbitrary inputs, tested with reproducible random ones."""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from lamp.clips.load import clips_from_images
from lamp.method.adain import AdaINMode, AdaINSchedule, adain
from lamp.method.architecture import BlockSite, ConvSite, SiteMap
from lamp.method.histogram import match_histograms
from lamp.method.layers import MotionConv, TemporalAttention, initialise, initialise_attention
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import with_first_frame
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion
from lamp.motion_file.merge import merge_motions

settings.register_profile("lamp", derandomize=True, max_examples=25, deadline=None, database=None)
settings.load_profile("lamp")

SEEDS = some.integers(0, 2**32)
FRAMES = some.integers(1, 9)
SMALL = some.integers(1, 5)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


# --- layers -------------------------------------------------------------------------------------


@given(seed=SEEDS, frames=FRAMES, videos=SMALL, height=SMALL, width=SMALL,
       strength=some.floats(-2, 2))  # fmt: skip
def test_a_new_layer_returns_its_input_bit_for_bit(
    seed: int, frames: int, videos: int, height: int, width: int, strength: float
) -> None:
    conv = MotionConv(4)
    initialise(conv)
    x = 100 * randn(videos * frames, 4, height, width, seed=seed)
    assert torch.equal(conv(x, frames, strength), x)
    attention, norm = TemporalAttention(4, 2), torch.nn.LayerNorm(4)
    initialise_attention(attention, norm, torch.Generator().manual_seed(seed))
    tokens = x.flatten(2).transpose(1, 2)
    assert not attention(norm(tokens), frames).any()


@given(seed=SEEDS, frames=some.integers(2, 9), data=some.data())
def test_the_convolution_sees_a_frame_and_the_two_before_it(
    seed: int, frames: int, data: some.DataObject
) -> None:
    changed = data.draw(some.integers(0, frames - 1))
    conv = randomised(MotionConv(3), seed)
    x = randn(2 * frames, 3, 4, 5, seed=seed)
    other = x.clone()
    other[changed] += 1.0
    same = [torch.equal(a, b) for a, b in zip(conv(x, frames), conv(other, frames), strict=True)]
    seen = range(changed, min(changed + 3, frames))
    assert same == [number not in seen for number in range(2 * frames)]


@given(seed=SEEDS, frames=some.integers(2, 9), data=some.data())
def test_temporal_attention_ignores_order_and_other_positions(
    seed: int, frames: int, data: some.DataObject
) -> None:
    """It is bidirectional, as the method has it: permuted frames give the permuted result."""
    order = data.draw(some.permutations(range(frames)))
    attention = randomised(TemporalAttention(4, 2), seed)
    x = randn(frames, 6, 4, seed=seed)
    out = attention(x, frames)
    torch.testing.assert_close(attention(x[order], frames), out[order], rtol=1e-4, atol=1e-4)
    other = x.clone()
    other[:, 2] += 1.0
    moved = (attention(other, frames) - out).abs().amax((0, 2)) > 1e-4
    assert moved.tolist() == [False, False, True, False, False, False]


# --- sampling -----------------------------------------------------------------------------------


@given(seed=SEEDS, frames=FRAMES, videos=SMALL, scale=some.floats(1e-3, 1e3),
       mode=some.sampled_from(("paper", "official", "off", "custom")),
       steps=some.integers(1, 100), data=some.data())  # fmt: skip
def test_frame_1_is_kept_to_the_bit_whatever_adain_does(
    seed: int, frames: int, videos: int, scale: float, mode: AdaINMode, steps: int,
    data: some.DataObject,
) -> None:  # fmt: skip
    step = data.draw(some.integers(0, steps - 1))
    first = scale * randn(videos, 4, 3, 5, seed=seed)
    x = with_first_frame(randn(videos * frames, 4, 3, 5, seed=seed + 1), first)
    schedule = AdaINSchedule(mode)
    out = schedule.after_loop(schedule.after_step(x, step, steps, frames), frames)
    assert out.shape == x.shape and out.isfinite().all()
    assert torch.equal(out.unflatten(0, (videos, frames))[:, 0], first)


@given(seed=SEEDS, scale=some.floats(0.01, 100), shift=some.floats(-50, 50))
def test_adain_gives_the_styles_mean_and_deviation(seed: int, scale: float, shift: float) -> None:
    content = randn(3, 4, 8, 8, seed=seed).double()
    style = randn(1, 4, 8, 8, seed=seed + 1).double() * scale + shift
    out = adain(content, style).numpy()
    expected = np.broadcast_to(style.numpy(), out.shape)
    np.testing.assert_allclose(out.mean((2, 3)), expected.mean((2, 3)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(out.std((2, 3)), expected.std((2, 3)), rtol=1e-4)
    # What is moved keeps its shape: a line through the content's own values.
    flat, moved = content.flatten(2).numpy(), out.reshape(3, 4, -1)
    assert all(
        np.corrcoef(flat[f, c], moved[f, c])[0, 1] > 0.99999 for f in range(3) for c in range(4)
    )


@settings(max_examples=8)
@given(seed=SEEDS, alpha=some.floats(0, 1))
def test_shared_noise_has_the_variance_and_the_correlation_of_the_formula(
    seed: int, alpha: float
) -> None:
    """n_f = a n_1 + (1 - a) n_f: variance a^2 + (1 - a)^2, covariance a with frame 1, a^2 with each
    other. Over 65,536 values the standard error is below 0.006; five of them are allowed."""
    noise = share_noise(draw_noise(3, 4, 128, 128, seed), alpha).flatten(1).double()
    found = noise @ noise.T / noise.shape[1]
    variance = alpha**2 + (1 - alpha) ** 2
    expected = [[1, alpha, alpha], [alpha, variance, alpha**2], [alpha, alpha**2, variance]]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=0.03)


@given(seed=SEEDS, width=some.integers(4, 16), height=some.integers(4, 16),
       levels=some.integers(2, 256))  # fmt: skip
def test_a_recoloured_frame_gets_its_colours_back_as_by_scikit_image(
    seed: int, width: int, height: int, levels: int
) -> None:
    exposure = pytest.importorskip("skimage.exposure")
    random = np.random.default_rng(seed)
    before, after = (np.sort(random.permutation(256)[:levels]) for _ in range(2))
    places = random.integers(0, levels, (height, width, 3))
    frame, expected = before[places].astype(np.uint8), after[places].astype(np.uint8)
    reference = random.permutation(expected.reshape(-1, 3)).reshape(width, height, 3)
    theirs = exposure.match_histograms(frame, reference, channel_axis=-1)
    ours = match_histograms(
        *(torch.from_numpy(image).float() / 255 for image in (frame[None], reference))
    )
    assert np.array_equal((ours[0] * 255).round().byte().numpy(), expected)
    assert np.array_equal(theirs, expected)


# --- files, windows, runs -----------------------------------------------------------------------

_BLOCK = "mid_block.attentions.0.transformer_blocks.0"
_SITES = SiteMap(
    (ConvSite("conv_in", "conv_in", 3),), (BlockSite(_BLOCK, _BLOCK, 4, 2),), (), (), "sd1"
)
_HEADS_OF_SD1 = MotionConfig("sd1")
_NUMBERS = some.floats(0, 1e6, allow_nan=False, exclude_min=True)
_TEXTS = some.text(some.characters(exclude_categories=("Cs",)), max_size=30)


@given(seed=SEEDS, prompt=_TEXTS, captions=some.lists(_TEXTS, max_size=4), fps=_NUMBERS,
       rate=_NUMBERS, frames=some.integers(1, 10**6),
       size=some.sampled_from((1e-30, 1.0, 1e30)))  # fmt: skip
def test_what_is_saved_comes_back(
    seed: int, prompt: str, captions: list[str], fps: float, rate: float, frames: int, size: float
) -> None:
    config = MotionConfig(
        "sd1", frames, fps=fps, prompt=prompt, captions=captions, learning_rate=rate, seed=seed
    )
    empty = Motion(_SITES).state_dict()
    state = {name: size * randn(*tensor.shape, seed=seed) for name, tensor in empty.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = save_motion(Path(folder, "m.safetensors"), state, config, dtype=torch.float32)
        file = load_motion_file(path)
        file.check_against(_SITES)
        assert file.config == config
        assert all(torch.equal(file.state[name], state[name]) for name in state)
        half = load_motion_file(save_motion(path, state, config))
    for name, tensor in half.state.items():
        # 10 bits of fraction, and nothing below the smallest number of fp16; too large stays fp32.
        torch.testing.assert_close(tensor.float(), state[name], rtol=2**-11, atol=2**-25)


_WEIGHTS = some.floats(-2, 2).filter(lambda weight: abs(weight) > 1e-3)


@given(seed=SEEDS, one=_WEIGHTS, other=_WEIGHTS)
def test_merging_is_a_weighted_sum_where_parts_add_up(seed: int, one: float, other: float) -> None:
    """And a motion merged with itself, or with one of weight 0, is itself at that strength."""
    empty = Motion(_SITES).state_dict()
    first, second = (
        MotionFile({n: randn(*t.shape, seed=seed + i) for n, t in empty.items()}, _HEADS_OF_SD1)
        for i in (0, 1)
    )
    both = merge_motions(first, second, (one, other)).state
    twice = merge_motions(first, first, (one, other)).state
    alone = merge_motions(first, second, (one, 0.0)).state
    for name in empty:
        if ".conv1d." in name or ".attn1.to_q." in name or name.endswith("to_out.0.bias"):
            wanted = one * first.state[name] + other * second.state[name]
            torch.testing.assert_close(both[name], wanted, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(twice[name], (one + other) * first.state[name])
            torch.testing.assert_close(alone[name], one * first.state[name])
        if ".conv_gate." in name:  # between the two, nearer to the one that says more
            low = torch.minimum(first.state[name], second.state[name])
            high = torch.maximum(first.state[name], second.state[name])
            assert ((both[name] >= low - 1e-5) & (both[name] <= high + 1e-5)).all()


@settings(max_examples=6)
@given(seed=SEEDS, lengths=some.lists(some.integers(4, 12), min_size=1, max_size=3),
       stride=some.integers(1, 2), frames=some.integers(2, 3))  # fmt: skip
def test_windows_are_drawn_uniformly_over_all_starts(
    seed: int, lengths: list[int], stride: int, frames: int
) -> None:
    """Pearson's chi-square within each clip, at six standard deviations."""
    images = [torch.rand(length, 8, 8, 3) for length in lengths]
    clips = clips_from_images(images, "x", frames, 8, 8, stride=stride)
    generator = torch.Generator().manual_seed(seed)
    starts = [length - (frames - 1) * stride for length in lengths]
    drawn = [clips.sample_window(generator) for _ in range(1500)]
    for clip, count in enumerate(starts):
        of_clip = [window.start for window in drawn if window.clip == clip]
        found = np.bincount(of_clip, minlength=count)
        assert len(found) == count
        expected = len(of_clip) / count
        chi_square = ((found - expected) ** 2 / expected).sum()
        assert chi_square <= count - 1 + 6 * math.sqrt(2 * max(count - 1, 1))


@functools.cache
def small_run() -> tuple[Any, Any]:
    from benchmarks.samples.small_training import small_clips, small_host

    return small_host(), small_clips()


@pytest.mark.slow
@settings(max_examples=2)
@given(stop=some.integers(1, 4), seed=some.integers(0, 99))
def test_a_resumed_run_equals_a_straight_one(stop: int, seed: int) -> None:
    pytest.importorskip("diffusers")
    from lamp.method.architecture import map_unet
    from lamp.training.loop import Training
    from lamp.training.recipe import TrainConfig
    from lamp.training.state import restore, take_state

    host, clips = small_run()

    def fresh() -> Training:
        config = TrainConfig(steps=5, frames=3, learning_rate=1e-2, seed=seed, ema=0.5)
        return Training(host, Motion(map_unet(host.unet)).initialise(seed), clips, config)

    straight, first, second = fresh(), fresh(), fresh()
    for _ in range(5):
        straight.advance()
    for _ in range(stop):
        first.advance()
    restore(second, take_state(first, {}), {})
    while second.step < 5:
        second.advance()
    assert second.losses == straight.losses
    for one, other in zip(straight.average.values, second.average.values, strict=True):
        assert torch.equal(one, other)
    pairs = zip(straight.motion.parameters(), second.motion.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
