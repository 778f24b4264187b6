"""The world of landscapes: drawings, captions, motions and measures, against independent facts."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lamp.errors import LampError
from lamp.toy.base import tokenize
from lamp.toy.scenes import cases, drawing, figures, measures, motions, nature, scene, score
from lamp.toy.scenes.canvas import LOOKS
from lamp.toy.scenes.words import WORDS
from scripts.server.host import HostMissing, host_path

KINDS = tuple(motions.MOTIONS)
Video = cases.SceneCase


def some_case(kind: str, seed: int = 1, frames: int = 8) -> Video:
    return cases.evaluation_cases(seed, kind, count=1, frames=frames)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_scores_high_and_still_or_wrong_videos_low(kind: str) -> None:
    for case in cases.evaluation_cases(2, kind, count=2):
        truth = score.score_video(case.frames, case)
        assert truth.overlap == truth.change == 1.0
        assert truth.motion > 0.6 and truth.followed
        still = score.score_video(score.still_video(case), case)
        assert still.motion < 0.2 and still.change < 0.01 and not still.followed
        wrong = score.score_video(score.wrong_video(case), case)
        assert wrong.motion < 0.45 and not wrong.followed


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_the_mask_covers_changes_in_a_clip(kind: str) -> None:
    case = some_case(kind)
    free = case.covers.max(0) == 0.0
    changed = np.abs(case.frames.astype(int) - case.frames[:1]).max(-1)
    # A shaded subject throws light on itself only, and foam is drawn outside the water's mask.
    foam = np.s_[:, 48:] if kind == "waterfall" else np.s_[:, :0]
    changed[foam] = 0
    assert changed[:, free].max() <= (60 if case.scenes[0].look in ("outline", "shaded") else 0)
    assert changed.max() > 40
    assert free.mean() > 0.3


@pytest.mark.parametrize("look", LOOKS)
def test_the_backdrop_is_the_picture_without_what_moves(look: str) -> None:
    rng = np.random.default_rng(3)
    chosen = {**scene.appearance(rng, "horse"), "look": look, "time": "dusk"}
    case = cases.make_case(motions.perform(motions.start(rng, "horse", chosen), 2))
    gap = np.abs(case.frames[0].astype(int) - case.backdrop).max(-1)
    if look != "outline":  # an outline lies around the mask
        assert gap[case.covers[0] == 0.0].max() <= 30
    assert (gap[case.covers[0] == 1.0] > 20).mean() > 0.8


def test_flow_finds_the_speed_of_a_slid_picture() -> None:
    picture = some_case("horse").first_frame
    slid = np.stack([np.roll(picture, 2 * i, axis=1) for i in range(3)])
    inner = measures.flows(slid)[:, 16:48, 16:48]
    moving = np.hypot(*np.moveaxis(inner, -1, 0)) > 1.0
    np.testing.assert_allclose(np.median(inner[moving], axis=0), [2.0, 0.0], atol=0.3)


@pytest.mark.parametrize("kind", ["helicopter", "horse", "birds", "guitar"])
def test_pictures_that_look_alike_go_on_alike(kind: str) -> None:
    """A pose is the same in two phases of a cycle: frame 1 must not leave it open which one."""
    paths = []
    for seed in range(3):
        scenes = some_case(kind, seed).scenes
        if kind == "birds":  # each bird has its own delay
            scenes = [replace(one, detail=0) for one in scenes]
        paths.append(np.stack([measures.POSES[kind](one) for one in scenes]))
    spread = np.ptp(np.stack(paths), axis=0)
    assert spread.max() < 0.4 * np.ptp(paths[0], axis=0).max()


def test_pixels_match_within_the_reach() -> None:
    one = np.zeros((1, 9, 9), bool)
    one[0, 4, 4] = True
    assert measures.near_share(one, one, 1) == 1.0
    assert measures.near_share(one, np.roll(one, 1, 2), 1) == 1.0
    assert measures.near_share(one, np.roll(one, 2, 2), 1) == 0.0
    both = one | np.roll(one, 3, 2)  # one of two pixels is found: precision 1, recall 1/2
    assert measures.near_share(one, both, 1) == pytest.approx(2 / 3)


def test_sparks_in_wrong_places_do_not_count() -> None:
    case = some_case("firework")
    assert measures.particle_share(case.frames, case) == 1.0
    apart = np.stack([case.frames[0], *np.roll(case.frames[1:], 9, axis=2)])
    assert measures.particle_share(apart, case) < 0.4


def test_water_and_rain_fall_at_the_speed_of_their_motion() -> None:
    water, rain = some_case("waterfall"), some_case("rain")
    tops = nature.streaks(water.scenes[1])[:, 1] - nature.streaks(water.scenes[0])[:, 1]
    assert np.median(tops) == pytest.approx(3.0)
    step = nature.drops(rain.scenes[1]) - nature.drops(rain.scenes[0])
    np.testing.assert_allclose(np.median(step, axis=0), [-1.0, 4.0], atol=1e-9)


@pytest.mark.parametrize("phase", np.linspace(0.0, 1.0, 7))
def test_legs_keep_their_length(phase: float) -> None:
    joints = figures.horse_joints(replace(some_case("horse").scenes[0], phase=float(phase)))
    bones = np.linalg.norm(np.diff(joints, axis=1), axis=-1)
    np.testing.assert_allclose(bones, np.tile([figures.THIGH, figures.SHIN], (4, 1)))


def test_a_gallop_repeats_after_eight_frames() -> None:
    case = some_case("horse", frames=9)
    first, last = (figures.leg_angles(case.scenes[i].phase) for i in (0, 8))
    np.testing.assert_allclose(first, last, atol=1e-9)
    assert np.ptp(figures.leg_angles(0.0) - figures.leg_angles(0.5)) > 0.5


def test_sparks_fly_apart_and_a_smile_grows() -> None:
    burst = [measures.POSES["firework"](one)[0] for one in some_case("firework").scenes]
    assert (np.diff(burst) > 0).all() and burst[-1] > 3 * burst[0]
    smile = some_case("smile").scenes
    assert smile[0].phase == 0.0 and smile[-1].phase == pytest.approx(1.0)
    assert figures.mouth(0.0)[1] < 0.0 < figures.mouth(1.0)[1]


@pytest.mark.parametrize("frames", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_what_moves_stays_in_the_picture(kind: str, frames: int) -> None:
    for seed in range(3):
        case = some_case(kind, seed, frames)
        areas = case.covers.sum((1, 2))
        assert areas.min() > (0.05 if kind == "firework" else 0.7) * areas.max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_clips_and_cases_share_neither_colours_nor_places(kind: str) -> None:
    clips = cases.training_clips(4, kind)
    assert clips.frames.shape == (8, 8, 64, 64, 3) and clips.frames.dtype == np.uint8
    shown = {word for caption in clips.captions for word in caption.split()}
    for case in cases.evaluation_cases(4, kind):
        one = case.scenes[0]
        assert one.colour not in shown and one.place not in shown
        assert one.colour in case.prompt.split() and one.place in case.prompt.split()


def test_the_same_seed_gives_the_same_clips_and_cases() -> None:
    one, two = (cases.training_clips(5, "birds") for _ in range(2))
    np.testing.assert_array_equal(one.frames, two.frames)
    assert one.captions == two.captions
    assert not np.array_equal(one.frames, cases.training_clips(6, "birds").frames)


def test_the_base_sees_every_place_and_pose_of_a_motion() -> None:
    rng = np.random.default_rng(0)
    for kind in KINDS:
        stills = [motions.still(rng, kind) for _ in range(400)]
        path = motions.perform(motions.start(rng, kind), motions.LONGEST)
        for name in ("x", "y", "phase"):
            seen = [getattr(one, name) for one in stills]
            room = 0.06 * max(1.0, np.ptp(seen))
            for one in path:
                assert min(seen) - room <= getattr(one, name) <= max(seen) + room


def test_every_word_is_the_clip_token_of_its_number() -> None:
    try:
        host = host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI's tokenizer: {error}")
    table = json.loads((host / "comfy" / "sd1_tokenizer" / "vocab.json").read_text("utf-8"))
    assert {word: table[f"{word}</w>"] for word in WORDS} == WORDS
    rng = np.random.default_rng(1)
    prompts = [
        f"{motions.still(rng, kind).caption} {motions.MOTIONS[kind].prompt}"
        for kind in KINDS
        for _ in range(60)
    ]
    ids = tokenize(prompts, WORDS)
    assert ((ids < 49406).sum(1).numpy() == [len(prompt.split()) for prompt in prompts]).all()


def test_captions_name_what_is_drawn() -> None:
    rng = np.random.default_rng(2)
    one = replace(motions.start(rng, "horse"), look="filled", colour="blue", time="noon", x=32.0)
    assert one.caption.startswith("a filled blue horse near ")
    picture, cover = drawing.draw(one)
    red, _, blue = np.median(picture[cover == 1.0], axis=0)
    assert blue > red + 60
    dark = replace(one, look="night", time="night")
    assert "filled" not in dark.caption and dark.caption.endswith("at night")
    assert drawing.draw(dark)[0].mean() < picture.mean() - 40


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(LampError, match="juggle"):
        cases.training_clips(0, "juggle")
    case = some_case("smile")
    with pytest.raises(LampError, match="7, 64, 64, 3"):
        score.score_video(case.frames[:7], case)
