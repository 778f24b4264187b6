"""Both toy worlds behind the names of their motions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lamp.errors import LampError
from lamp.toy import cases, clip, worlds
from lamp.toy.base import load_toy_base, toy_state
from lamp.toy.scenes import cases as scenes_cases
from lamp.toy.scenes import motions, words
from lamp.toy.scenes import score as scenes_score


def test_a_motion_belongs_to_one_world() -> None:
    names = worlds.motion_names()
    assert len(set(names)) == len(names) and set(motions.MOTIONS) < set(names)


@pytest.mark.parametrize(("motion", "size"), [("moves_right", 32), ("horse", 64)])
def test_clips_and_cases_are_those_of_the_motions_world(motion: str, size: int) -> None:
    assert worlds.training_clips(3, motion, 4).frames.shape == (4, 8, size, size, 3)
    found = worlds.evaluation_cases(3, "combination", motion)
    assert len(found) == 24 and found[23].frames.shape == (8, size, size, 3)
    assert isinstance(found[0], cases.Case if size == 32 else scenes_cases.SceneCase)


def test_scenes_have_no_hard_set() -> None:
    with pytest.raises(LampError, match="hard"):
        worlds.evaluation_cases(0, "hard", "horse")


@pytest.mark.slow
@pytest.mark.parametrize("motion", ["moves_right", "horse"])
def test_the_true_video_is_followed_and_a_still_one_is_not(motion: str) -> None:
    case = worlds.evaluation_cases(1, "combination", motion)[0]
    overlap, text = worlds.score_text(case.frames, case)
    assert overlap == 1.0 and ": followed" in text
    overlap, text = worlds.score_text(np.repeat(case.frames[:1], 8, axis=0), case)
    assert overlap < 0.7 and ": not followed" in text


def test_the_base_of_the_scenes_decodes_what_it_encodes() -> None:
    """And its UNet is the size of the sprites', so that both cost the same."""
    toy = load_toy_base(path=worlds.BASES["scenes"])
    case = scenes_cases.evaluation_cases(5, "smile", 1)[0]
    decoded = toy.decode(toy.encode(case.frames)).numpy() * 255.0
    assert decoded.shape == case.frames.shape
    error = np.square(decoded - case.frames.astype(float)).mean()
    assert 10.0 * np.log10(255.0**2 / error) > 25.0  # dB
    sprites = toy_state(worlds.BASES["sprites"])["unet"]
    assert {n: v.shape for n, v in toy.unet.state_dict().items()} == {
        name: value.shape for name, value in sprites.items()
    }
    assert toy.config["words"] == words.WORDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", motions.MOTIONS)
def test_what_the_vae_loses_does_not_count_as_another_motion(kind: str) -> None:
    toy = load_toy_base(path=worlds.BASES["scenes"])
    for case in scenes_cases.evaluation_cases(6, kind, 2):
        decoded = (toy.decode(toy.encode(case.frames)).numpy() * 255.0).round().astype(np.uint8)
        found = scenes_score.score_video(np.concatenate([case.frames[:1], decoded[1:]]), case)
        assert found.motion >= 0.6


def test_the_clip_of_the_scenes_tells_subjects_apart() -> None:
    """Chance is one in eight."""
    model = clip.load_toy_clip(worlds.CLIPS["scenes"])
    chosen = [scenes_cases.evaluation_cases(7, kind, 1)[0] for kind in motions.MOTIONS]
    seen = model.encode_image(
        torch.from_numpy(np.stack([case.first_frame for case in chosen])) / 255.0
    )
    read = torch.stack([model.encode_text(case.caption) for case in chosen])
    best = seen / seen.norm(dim=-1, keepdim=True) @ (read / read.norm(dim=-1, keepdim=True)).T
    assert (best.argmax(1).numpy() == np.arange(len(chosen))).mean() >= 0.8
