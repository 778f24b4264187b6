"""The measures of a video, against plain formulas and clips whose truth is known."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.samples.clip_files import sliding, texture
from lamp.errors import LampError
from lamp.metrics import (
    UNCHANGED,
    background_stability,
    diversity,
    frame_consistency,
    measure,
    motion_amount,
    text_alignment,
    video_similarity,
)


def cosine(one: Tensor, other: Tensor) -> float:
    a, b = one.double().numpy(), other.double().numpy()
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    """All on one side, as CLIP's are, and of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 0.5 + 10 * torch.rand(*shape[:-1], 1, generator=generator)
    return lengths * (torch.randn(shape, generator=generator) + 1)


# --- the paper's ----------------------------------------------------------------------------


def test_alignment_is_the_frames_mean_clip_score() -> None:
    frames, text = embeddings(5, 12), embeddings(12, seed=1)
    expected = 100 * np.mean([cosine(frame, text) for frame in frames])
    assert text_alignment(frames, text) == pytest.approx(expected, rel=1e-6)
    assert text_alignment(text.expand(3, -1) * 7, text) == pytest.approx(100)
    assert text_alignment(-text[None], text) == pytest.approx(-100)


def test_consistency_is_over_all_pairs_of_frames() -> None:
    frames = embeddings(6, 12)
    pairs = [cosine(one, other) for one, other in itertools.combinations(frames, 2)]
    assert len(pairs) == 15
    assert frame_consistency(frames) == pytest.approx(100 * np.mean(pairs), rel=1e-6)
    assert frame_consistency(frames[:1].expand(4, -1)) == pytest.approx(100)
    # A slow drift: the neighbours are much alike, the ends are not.
    angles = torch.linspace(0, math.pi / 2, 16)
    drift = torch.stack([angles.cos(), angles.sin()], 1)
    neighbours = 100 * math.cos(math.pi / 30)
    assert neighbours > 99 and frame_consistency(drift) < 85


def test_diversity_is_over_all_pairs_of_videos() -> None:
    videos = embeddings(4, 5, 12)
    # The product of two means, none of them of unit length, is the mean over all pairs of frames.
    pairs = [
        np.mean([cosine(frame, seen) for frame, seen in itertools.product(one, other)])
        for one, other in itertools.combinations(videos, 2)
    ]
    assert diversity(videos) == pytest.approx(100 * np.mean(pairs), rel=1e-6)
    # So it falls where the frames of a video differ: two opposite halves leave nothing.
    still, turned = torch.eye(2)[:1].expand(4, -1), torch.eye(2).repeat(2, 1)
    assert diversity([still] * 3) == pytest.approx(100)
    assert diversity([turned] * 3) == pytest.approx(50)
    # Of different lengths, and in an order that must not matter.
    uneven = [videos[0], videos[1][:2], videos[2][:4]]
    assert diversity(uneven) == pytest.approx(diversity([v.flip(0) for v in uneven[::-1]]))


def test_video_similarity_is_the_cosine_of_the_videos_means() -> None:
    videos = embeddings(4, 5, 12)
    means = [torch.stack([f / f.norm() for f in video]).mean(0) for video in videos]
    pairs = [cosine(one, other) for one, other in itertools.combinations(means, 2)]
    assert video_similarity(videos) == pytest.approx(100 * np.mean(pairs), rel=1e-6)
    assert video_similarity([videos[0]] * 3) == pytest.approx(100)
    assert diversity([videos[0]] * 3) < 100
    with pytest.raises(LampError, match="2"):
        video_similarity(videos[:1])


def test_metrics_of_pairs_need_two_videos_and_finite_embeddings() -> None:
    with pytest.raises(LampError, match="2.*1"):
        frame_consistency(embeddings(1, 12))
    with pytest.raises(LampError, match="2.*1"):
        diversity(embeddings(1, 5, 12))
    broken = embeddings(3, 12)
    broken[1, 4] = float("nan")
    with pytest.raises(LampError, match="NaN"):
        frame_consistency(broken)


# --- by optical flow ------------------------------------------------------------------------

SIZES = [(48, 64), (160, 256)]


def moving_square(height: int, width: int, step: float, sigma: float = 0.0) -> Tensor:
    """A patterned square on a patterned, fixed ground; noise in all frames but the first."""
    ground = torch.from_numpy(texture(width, height, 1)).float() / 255 * 0.5 + 0.25
    side = height // 3
    square = torch.from_numpy(texture(side, side, 5)).float() / 255
    frames = ground.repeat(8, 1, 1, 1)
    for number in range(8):
        left = 3 + round(step * number)
        frames[number, side : 2 * side, left : left + side] = square
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0)) * sigma
    noise[0] = 0
    return frames + noise


@pytest.fixture
def opencv() -> None:
    pytest.importorskip("cv2")


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_motion_is_that_of_the_moving_square(opencv: None, height: int, width: int) -> None:
    step = height / 24
    assert motion_amount(moving_square(height, width, step)) == pytest.approx(step, rel=0.15)
    assert motion_amount(moving_square(height, width, 0)) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("share", [0.01, 0.06])
def test_a_fixed_ground_is_unchanged_whatever_moves_on_it(
    opencv: None, height: int, width: int, share: float
) -> None:
    frames = moving_square(height, width, share * height)
    assert (frames[1:] - frames[0]).abs().max() > 0.1
    assert background_stability(frames) == UNCHANGED
    assert background_stability((frames * 255).round().byte()) == UNCHANGED


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.05])
def test_noise_gives_its_own_decibels(opencv: None, height: int, width: int, sigma: float) -> None:
    found = background_stability(moving_square(height, width, 0.06 * height, sigma))
    assert found == pytest.approx(-20 * math.log10(sigma), abs=0.1)


def test_flicker_of_a_plain_background_is_not_motion(opencv: None) -> None:
    """Where there is nothing to hold on to, flow follows the noise."""
    frames = moving_square(80, 128, 5)
    plain = torch.full_like(frames, 0.5)
    for number in range(8):
        left = 3 + 5 * number
        plain[number, 26:52, left : left + 26] = frames[number, 26:52, left : left + 26]
    plain[1:] += 0.02 * torch.randn(plain[1:].shape, generator=torch.Generator().manual_seed(2))
    assert background_stability(plain) == pytest.approx(-20 * math.log10(0.02), abs=0.1)


def test_a_background_that_fades_or_drifts_scores_lower(opencv: None) -> None:
    frames = moving_square(48, 64, 3)
    faded = frames + torch.linspace(0, 0.14, 8)[:, None, None, None]
    steps = np.linspace(0, 0.14, 8)[1:]
    expected = -10 * math.log10(float((steps**2).mean()))
    assert background_stability(faded) == pytest.approx(expected, abs=0.05)
    assert background_stability(sliding(8, 1)) < 25


def test_without_opencv_there_is_no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    frames = moving_square(48, 64, 3)
    assert motion_amount(frames) is background_stability(frames) is None
    found = measure([frames], ["a"])
    assert found.report().splitlines() == [
        "a: nothing could be measured",
        "Motion and background need OpenCV: pip install opencv-python-headless.",
        "Frame consistency and diversity need CLIP's image encoder.",
        "Text alignment needs CLIP's image and text encoder.",
    ]


def test_tiny_and_very_long_pictures_are_measured(opencv: None) -> None:
    """OpenCV's flow crashes the whole process on pictures of a few pixels."""
    for width, height in ((8, 8), (512, 8), (8, 512)):
        frames = torch.rand(3, height, width, 3)
        assert math.isfinite(background_stability(frames))


# --- several videos at once -----------------------------------------------------------------


def see(frames: Tensor) -> Tensor:
    """An image encoder that looks at the mean colours."""
    assert frames.dtype == torch.float32 and 0 <= frames.min() and frames.max() <= 1
    return frames.mean((1, 2))


def read(prompt: str) -> Tensor:
    return {"red": torch.tensor([1.0, 0, 0]), "green": torch.tensor([0, 1.0, 0])}[prompt]


def test_all_measures_of_some_videos(opencv: None) -> None:
    videos = [moving_square(48, 64, step) for step in (0, 3)]
    videos[1][..., 0] *= torch.linspace(1, 0, 8)[:, None, None]
    done = []
    found = measure(videos, ["a", "b"], [" red "], see, read, lambda *state: done.append(state))
    assert done == [(0, 2), (1, 2), (2, 2)]
    assert found.missing == {}
    for video, score in zip(videos, found.videos, strict=True):
        colours = video.clamp(0, 1).mean((1, 2))
        assert score.text_alignment == pytest.approx(text_alignment(colours, read("red")))
        assert score.frame_consistency == pytest.approx(frame_consistency(colours))
        assert score.motion == motion_amount(video)
        assert score.background == background_stability(video)
    assert found.diversity == pytest.approx(diversity([v.mean((1, 2)) for v in videos]))
    assert found.mean("motion") == (found.videos[0].motion + found.videos[1].motion) / 2
    lines = found.report().splitlines()
    assert found.video_similarity == pytest.approx(
        video_similarity([v.mean((1, 2)) for v in videos])
    )
    names = ["a", "b", "mean", "diversity", "video similarity"]
    assert [line.split(":")[0] for line in lines] == names
    assert lines[0] == (
        f"a: text alignment {found.videos[0].text_alignment:.2f}, frame consistency 100.00, "
        "motion 0.00 px, background 80.0 dB"
    )


def test_each_video_has_its_prompt_or_all_have_one(opencv: None) -> None:
    videos = [moving_square(48, 64, 0)] * 2
    both = measure(videos, ["a", "b"], ["red", "green"], see, read)
    alone = [measure(videos, ["a", "b"], [name], see, read) for name in ("red", "green")]
    assert [video.text_alignment for video in both.videos] == [
        alone[0].videos[0].text_alignment,
        alone[1].videos[0].text_alignment,
    ]
    with pytest.raises(LampError, match="2 prompts.*3 videos"):
        measure([videos[0]] * 3, list("abc"), ["red", "green"], see, read)


@pytest.mark.parametrize("prompts", [["", "red"], ["red", ""], ["", "red", "green"], ["", " "]])
def test_an_empty_prompt_among_several_scores_nothing(prompts: list[str]) -> None:
    """And no other prompt takes its place."""
    videos = [moving_square(48, 64, 0)] * len(prompts)
    found = measure(videos, list("abc")[: len(prompts)], prompts, see, read)
    colours = videos[0].clamp(0, 1).mean((1, 2))
    for prompt, score in zip(prompts, found.videos, strict=True):
        if prompt.strip():
            assert score.text_alignment == pytest.approx(text_alignment(colours, read(prompt)))
        else:
            assert score.text_alignment is None
    assert "text_alignment" in found.missing
    if prompts == ["red", ""]:
        assert found.missing["text_alignment"].rstrip(".").endswith(" b")


def test_bytes_and_many_frames_are_measured_alike(opencv: None) -> None:
    encoded = (moving_square(48, 64, 3).clamp(0, 1) * 255).round().byte().repeat(3, 1, 1, 1)
    videos = [encoded, encoded.float() / 255]  # 24 frames: more than are embedded at a time
    one, other = (measure([video], ["a"], ["red"], see, read).videos[0] for video in videos)
    assert one == other
    expected = text_alignment(videos[1].mean((1, 2)), read("red"))
    assert one.text_alignment == pytest.approx(expected)


def test_missing_inputs_are_reported(opencv: None) -> None:
    video = moving_square(48, 64, 0)
    silent = measure([video], ["a"], [""], see, read)
    assert silent.missing == {
        "text_alignment": "Text alignment needs a prompt.",
        "diversity": "Diversity needs two videos or more.",
    }
    assert silent.videos[0].text_alignment is silent.diversity is None
    deaf = measure([video], ["a"], ["red"], see).missing["text_alignment"]
    assert deaf == "Text alignment needs CLIP's image and text encoder."


def test_invalid_videos_are_refused() -> None:
    video = moving_square(48, 64, 0)
    with pytest.raises(LampError, match="'b'"):
        measure([video, video[:1]], ["a", "b"])
    broken = video.clone()
    broken[3, 0, 0, 0] = float("inf")
    with pytest.raises(LampError, match="'b'.*NaN"):
        measure([video, broken], ["a", "b"])
