"""The toy world and its measures, against facts that are known without them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lamp.errors import LampError
from lamp.toy import base, cases, measures, motions, score, shapes, world


def one_scene(shape: str, radius: float = 6.0, angle: float = 0.0, x: float = 16.0) -> world.Scenes:
    zero = np.zeros(1, dtype=np.int64)
    return world.Scenes(
        shape=zero + world.SHAPES.index(shape),
        colour=zero,
        ground=zero,
        texture=zero,
        x=np.array([x]),
        y=np.array([16.0]),
        radius=np.array([radius]),
        angle=np.array([angle]),
        phase=np.zeros((1, 2)),
    )


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("disc", math.pi * 0.92**2),
        ("ring", math.pi * (1.03**2 - 0.49**2)),
        ("square", 1.66**2),
        ("diamond", 2 * 1.28 * 0.86),
        ("cross", 2 * 2.04 * 0.72 - 0.72**2),
        ("triangle", 3 * math.sqrt(3) / 4 * 1.28**2),
        ("star", 5 * 1.30 * 0.58 * math.sin(math.pi / 5)),
    ],
)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_covered_area_is_the_shapes_area(shape: str, area: float, angle: float) -> None:
    covered = world.coverage(one_scene(shape, angle=angle)).sum()
    assert covered == pytest.approx(area * 36.0, rel=0.04)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_every_shape_is_one_solid_object_of_similar_size(shape: str) -> None:
    skimage = pytest.importorskip("skimage.measure")
    mask = world.coverage(one_scene(shape))[0] > 0.5
    assert skimage.label(mask).max() == 1
    assert 65 <= mask.sum() <= 105


def test_distances_have_no_two_shapes_alike() -> None:
    masks = [world.coverage(one_scene(shape))[0] > 0.5 for shape in shapes.SHAPES]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert measures.overlap(one[None], other[None])[0] < 0.9


def test_an_object_keeps_its_area_and_moves_two_pixels_a_frame() -> None:
    frames, cover = world.draw(*motions.perform((one_scene("star", x=8.0),), "moves_right"))
    assert frames.shape == (8, 32, 32, 3) and frames.dtype == np.uint8
    path = (cover * (np.arange(32) + 0.5)).sum((1, 2)) / cover.sum((1, 2))
    np.testing.assert_allclose(np.diff(path), 2.0, atol=0.02)
    # two pixels a frame is a whole number of pixels: the picture itself moves
    np.testing.assert_array_equal(frames[1][:, 2:], frames[0][:, :-2])


def test_colours_are_those_of_the_caption() -> None:
    scenes = world.sample_scenes(np.random.default_rng(4), 50)
    images, cover = world.draw(scenes)
    for image, share, caption in zip(images, cover, scenes.captions(), strict=True):
        words = caption.split()
        assert tuple(np.median(image[share == 1.0], axis=0)) == world.OBJECT_COLOURS[words[1]]
        ground = image[share == 0.0].astype(float).mean(axis=0)
        wanted = np.array(world.GROUND_COLOURS[words[5]])
        assert np.abs(ground - wanted).max() < world.TEXTURE_DEPTH


def test_captions_are_made_of_single_known_tokens() -> None:
    assert set(base.WORDS) == set(world.vocabulary())
    scenes = world.sample_scenes(np.random.default_rng(1), 200)
    prompts = [f"{text} {motion}" for text in scenes.captions() for motion in world.MOTION_PHRASES]
    ids = base.tokenize(prompts, base.WORDS)
    assert ids.shape == (len(prompts), 77)
    assert (ids[:, 0] == 49406).all() and (ids[:, -1] == 49407).all()
    assert ((ids < 49406).sum(1).numpy() == [len(prompt.split()) for prompt in prompts]).all()
    with pytest.raises(ValueError, match="elephant"):
        base.tokenize(["an elephant"], base.WORDS)


def test_the_same_seed_gives_the_same_clips_and_cases() -> None:
    one, two, other = (cases.training_clips(seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.frames, two.frames)
    assert one.captions == two.captions and one.motion == "moves right"
    assert not np.array_equal(one.frames, other.frames)
    again = [cases.evaluation_cases(5, "hard", count=3) for _ in range(2)]
    np.testing.assert_array_equal(again[0][2].frames, again[1][2].frames)


def test_the_light_fades_on_the_ground_alone() -> None:
    clips, faded = cases.training_clips(5), cases.training_clips(5, fade=0.5)
    np.testing.assert_array_equal(clips.frames[:, 0], faded.frames[:, 0])
    last, dark = clips.frames[:, -1].astype(float), faded.frames[:, -1].astype(float)
    ground = (slice(None), slice(None), slice(0, 2))  # the object has left the first columns
    assert np.abs(dark[ground] - last[ground] / 2).max() <= 1.0
    assert (np.abs(dark - last).max(-1) == 0).any((1, 2)).all()  # the object keeps its colour


@pytest.mark.parametrize("seed", range(8))
def test_unseen_objects_are_unseen(seed: int) -> None:
    clips = [text.split()[1:3] for text in cases.training_clips(seed).captions]
    pairs = {tuple(pair) for pair in clips}
    colours, forms = {colour for colour, _ in clips}, {shape for _, shape in clips}
    assert len(pairs) == 8 and len(colours) == len(forms) == 4
    for case in cases.evaluation_cases(seed, "combination", count=16):
        colour, shape = case.caption.split()[1:3]
        assert colour in colours and shape in forms and (colour, shape) not in pairs
    for case in cases.evaluation_cases(seed, "hard", count=16):
        colour, shape = case.caption.split()[1:3]
        assert colour not in colours and shape not in forms


def test_objects_stay_inside_the_picture() -> None:
    for seed in range(4):
        for case in cases.evaluation_cases(seed, "hard", count=16):
            sizes = case.targets[0].masks.sum((1, 2))
            assert sizes.min() >= 0.85 * sizes.max()


@pytest.fixture(scope="module")
def right() -> list[cases.Case]:
    return [
        case
        for which in ("combination", "hard")
        for case in cases.evaluation_cases(3, which, count=16)
    ]


def test_the_truth_scores_one(right: list[cases.Case]) -> None:
    summary = score.summarise([score.score_clip(case.frames, case) for case in right])
    assert summary["iou"] > 0.99 and summary["nrmse"] < 0.01
    assert summary["followed"] == summary["appearance"] == 1.0


def test_another_number_of_frames_is_refused(
    node_classes: dict[str, Any], right: list[cases.Case]
) -> None:
    images = torch.zeros(3, 32, 32, 3)
    named = r"^LAMP Toy Score: .*3, 32, 32, 3.*8 frames"
    with pytest.raises(LampError, match=named):
        node_classes["LAMP_ToyScore"].execute(images, right[0])


def test_a_static_video_fails(right: list[cases.Case]) -> None:
    scores = [score.score_clip(score.static_video(case), case) for case in right]
    for result in scores:
        assert result.nrmse == pytest.approx(1.0, abs=1e-6)
        assert result.gain == pytest.approx(0.0, abs=1e-6)
        assert result.iou < 0.3 and not result.followed
    # its picture is perfect, which is why picture quality alone says nothing
    assert score.summarise(scores)["appearance"] == 1.0


def test_half_the_speed_is_half_the_gain_and_not_followed(right: list[cases.Case]) -> None:
    case = right[0]
    frames = case.frames[np.arange(8) // 2]
    result = score.score_clip(frames, case)
    assert 0.35 < result.gain < 0.55 and not result.followed
    assert result.kept > 0.99


def test_a_vanished_object_counts_as_never_moved(right: list[cases.Case]) -> None:
    case = right[0]
    frames = case.frames.copy()
    frames[1:] = np.rint(case.ground).astype(np.uint8)
    result = score.score_clip(frames, case)
    assert result.nrmse == 1.0 and result.area == 0.0 and result.iou == 0.0
    assert not result.followed and not result.appearance


def test_the_wrong_colour_is_not_the_object(right: list[cases.Case]) -> None:
    case = right[0]
    frames, colour = case.frames.copy(), case.targets[0].colour
    others = [c for c in world.OBJECT_COLOURS.values() if c != colour]
    far = max(others, key=lambda c: math.dist(c, colour))
    frames[case.targets[0].masks] = far
    frames[0] = case.frames[0]
    assert score.score_clip(frames, case).area < 0.5


def test_noise_on_the_picture_does_not_hide_the_motion(right: list[cases.Case]) -> None:
    rng = np.random.default_rng(0)
    for case in right[:8]:
        noisy = case.frames + rng.normal(0.0, 10.0, case.frames.shape)
        result = score.score_clip(np.clip(noisy, 0, 255).astype(np.uint8), case)
        assert result.followed and result.iou > 0.8


def test_sizes_must_agree(right: list[cases.Case]) -> None:
    with pytest.raises(LampError, match=r"\(4, 32, 32, 3\)"):
        score.score_clip(right[0].frames[:4], right[0])


@pytest.fixture(scope="module")
def toy() -> base.ToyBase:
    pytest.importorskip("diffusers")
    return base.load_toy_base()


def test_the_file_is_small_and_its_table_full() -> None:
    assert base.PATH.stat().st_size <= 7_500_000
    state = base.toy_state()
    table = state["text_encoder"][base.TABLE]
    assert table.shape == (49408, 64)
    assert not table[base.WORDS["star"]].equal(table[base.WORDS["moon"]])
    assert table[0].equal(table[1])  # two tokens that the world never uses
    assert state["metadata"]["words"] == base.WORDS


@pytest.mark.slow
def test_the_vae_keeps_pictures_and_gives_unit_latents(toy: base.ToyBase) -> None:
    images, _ = world.draw(world.sample_scenes(np.random.default_rng(77), 96))
    latents = toy.encode(images)
    assert latents.shape == (96, 4, 16, 16)
    assert (latents.std((0, 2, 3)) - 1.0).abs().max() < 0.15
    error = (toy.decode(latents).numpy() - images / 255.0) ** 2
    assert 10.0 * np.log10(1.0 / error.mean()) > 35.0


def test_words_reach_the_picture_model(toy: base.ToyBase) -> None:
    text = toy.encode_text(["a red star on a navy plain ground", "", "a red star moves right"])
    assert text.shape == (3, 77, 64)
    # causal: what comes later cannot change the common beginning "<start> a red star"
    assert (text[0, :4] - text[2, :4]).abs().max() < 1e-5
    assert (text[0, 4:] - text[2, 4:]).abs().max() > 0.1
