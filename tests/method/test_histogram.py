"""Histogram matching: the official bytes, and scikit-image where the definitions agree."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.exposure import match_histograms as skimage_match
from torch import Tensor

from lamp.errors import LampError
from lamp.method.histogram import match_histograms

DATA = Path(__file__).parents[1] / "data" / "histogram.safetensors"


def to_bytes(x: Tensor) -> Tensor:
    return (x * 255).round().byte()


def random_image(height: int, width: int, seed: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (height, width, 3), generator=generator).float() / 255


def assert_official(src: Tensor, dst: Tensor, expected: Tensor) -> None:
    if src.dtype == torch.uint8:
        src, dst = src.float() / 255, dst.float() / 255
    matched = match_histograms(torch.stack([src, dst]), src)
    assert torch.equal(matched[0], src)
    assert torch.equal(to_bytes(matched[1]), expected)


@pytest.mark.parametrize("case", ["narrow", "const_dst"])
def test_equal_to_the_official_bytes(case):
    official = load_file(DATA)
    assert_official(*(official[f"{case}.{part}"] for part in ("src", "dst", "out_u8")))


@pytest.mark.parametrize("case", ["random", "narrow", "const_dst", "real"])
def test_equal_to_the_official_bytes_on_all_cases(shared_dir, case):
    official = load_file(shared_dir / "fixtures" / "post_hismatch.safetensors")
    kind = "_u8" if f"{case}.src_u8" in official else ""
    assert_official(
        official[f"{case}.src{kind}"], official[f"{case}.dst{kind}"], official[f"{case}.out_u8"]
    )


@pytest.mark.parametrize("seed", range(5))
def test_recovers_a_remapped_image_as_scikit_image_does(seed):
    """The frame is the reference's pixels in another order under a growing curve: every share
    of the frame occurs in the reference, so that scikit-image has nothing to interpolate."""
    reference = random_image(24, 32, seed, high=120)
    levels = to_bytes(reference).reshape(-1, 3)
    curve = torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:120].sort().values
    order = torch.randperm(levels.shape[0], generator=torch.Generator().manual_seed(seed + 1))
    frame = (curve[levels[order].long()].float() / 255).reshape(32, 24, 3)
    ours = to_bytes(match_histograms(frame[None], reference)[0])
    theirs = skimage_match(
        to_bytes(frame).numpy(), to_bytes(reference).numpy(), channel_axis=-1
    ).round()
    assert torch.equal(ours.reshape(-1, 3), levels[order])
    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("size", [(20, 20), (37, 11)])
def test_never_below_scikit_image_and_within_one_level_of_the_reference(size):
    """scikit-image interpolates between the reference's levels, here the upper one is taken."""
    reference, frame = random_image(*size, seed=1, low=30, high=200), random_image(20, 20, seed=2)
    ours = to_bytes(match_histograms(frame[None], reference)[0]).numpy().astype(float)
    theirs = skimage_match(
        to_bytes(frame).numpy().astype(float), to_bytes(reference).numpy(), channel_axis=-1
    )
    for channel in range(3):
        present = np.unique(to_bytes(reference)[..., channel].numpy()).astype(float)
        place = np.searchsorted(present, ours[..., channel])
        below = present[np.maximum(place - 1, 0)]
        # the last level is also the end of the search, whether the reference has it or not
        inside = ours[..., channel] <= present[-1]
        assert inside.mean() > 0.98
        assert (theirs[..., channel] <= ours[..., channel] + 1e-6)[inside].all()
        assert (theirs[..., channel] >= below - 1e-6)[inside].all()


def test_strength_blends_and_zero_changes_nothing():
    reference, frames = random_image(16, 16, 0, high=80), random_image(16, 16, 1)[None]
    full = match_histograms(frames, reference)
    half = match_histograms(frames, reference, strength=0.5)
    torch.testing.assert_close(half, (frames + full) / 2)
    assert torch.equal(match_histograms(frames, reference, strength=0.0), frames)


def test_frames_are_matched_one_by_one():
    reference = random_image(16, 16, 0, high=80)
    frames = torch.stack([random_image(16, 16, seed, low=20 * seed) for seed in range(1, 5)])
    together = match_histograms(frames, reference)
    alone = [match_histograms(frame[None], reference)[0] for frame in frames]
    assert torch.equal(together, torch.stack(alone))


def test_reference_in_floats_comes_back_unrounded():
    frames = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(match_histograms(frames, frames[0])[0], frames[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    frames = random_image(16, 16, 1)[None].to(dtype)
    matched = match_histograms(frames, random_image(16, 16, 0, high=80).to(dtype))
    assert matched.dtype == dtype
    assert matched.max() <= 80 / 255 + 1e-2


def test_invalid_input_is_refused():
    frames, reference = torch.zeros(2, 8, 8, 3), torch.zeros(8, 8, 3)
    with pytest.raises(LampError, match="f h w c"):
        match_histograms(frames, reference[None])
    with pytest.raises(LampError, match="3 channels.*4"):
        match_histograms(frames, torch.zeros(8, 8, 4))
    with pytest.raises(LampError, match="strength.*2"):
        match_histograms(frames, reference, strength=2)
    with pytest.raises(LampError, match="frames .* NaN"):
        match_histograms(frames.clone().fill_(float("nan")), reference)
