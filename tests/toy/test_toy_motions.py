"""The toy motions and the scores of each, against independent formulas."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.toy import motion as benchmark
from benchmarks.toy.runs import RECIPES
from lamp.errors import LampError
from lamp.toy import base, cases, measures, motions, score, world

pytestmark = pytest.mark.slow  # many of them

NEW = [name for name in motions.MOTIONS if name != "moves_right"]
TIME = np.arange(world.FRAMES)


@functools.cache
def unseen(motion: str, count: int = 5) -> list[cases.Case]:
    return [
        case
        for which in ("combination", "hard")
        for case in cases.evaluation_cases(11, which, motion, count=count)
    ]


def played(case: cases.Case, motion: str, speed: float = 1.0) -> NDArray[np.uint8]:
    """The case's objects from their first frame on, in any motion of as many objects."""
    start = tuple(target.scenes[:1] for target in case.targets)
    return world.draw(*motions.perform(start, motion, speed=np.array([speed])))[0]


@functools.cache
def scores(motion: str, speed: float) -> list[score.Score]:
    return [score.score_clip(played(case, motion, speed), case) for case in unseen(motion)]


# --- the motions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("motion", "seen", "formula"),
    [
        ("moves_right", "x", 2.0 * TIME),
        ("rotate", "angle", math.radians(5.8) * TIME),
        ("grow", "radius", 0.45 * TIME),
        # two parabolas of 8 pixels, upwards, each of six frames
        ("bounce", "y", -8.0 * np.array([0, 5 / 9, 8 / 9, 1, 8 / 9, 5 / 9, 0, 5 / 9])),
        ("wave", "x", 5.5 * np.sin(2.0 * np.pi * TIME / 8.0)),
    ],
)
def test_one_property_follows_its_formula_and_all_others_rest(
    motion: str, seen: str, formula: NDArray[np.float64]
) -> None:
    (target,) = unseen(motion, 1)[0].targets
    for name in ("x", "y", "angle", "radius"):
        if name in "xy" and seen not in "xy":
            continue  # where it rests, one sees; see the next test
        wanted = formula if name == seen else 0.0 * formula
        values = getattr(target.scenes, name)
        np.testing.assert_allclose(values - values[0], wanted, atol=1e-9)


@pytest.mark.parametrize("motion", ["rotate", "grow"])
def test_a_turning_or_growing_object_stays_where_one_sees_it(motion: str) -> None:
    """Also a moon, whose circle has its centre elsewhere."""
    shapes = motions.MOTIONS[motion].shapes
    scenes = world.sample_scenes(np.random.default_rng(0), len(shapes), varied=1.0)
    scenes = replace(
        scenes,
        shape=np.array([world.SHAPES.index(name) for name in shapes]),
        x=0.0 * scenes.x + 16.0,
        y=0.0 * scenes.y + 16.0,
        radius=0.0 * scenes.radius + 6.0,
    )
    (played,) = motions.perform((scenes,), motion)
    seen = measures.centroids(world.coverage(played)).reshape(len(shapes), -1, 2)
    np.testing.assert_allclose(seen, np.broadcast_to(seen[:, :1], seen.shape), atol=0.1)


def test_two_objects_pass_each_other() -> None:
    upper, lower = unseen("two_objects", 1)[0].targets
    np.testing.assert_allclose(np.diff(upper.scenes.x), 2.0)
    np.testing.assert_allclose(np.diff(lower.scenes.x), -2.0)
    assert upper.masks.any((0, 2)).nonzero()[0].max() < world.SIZE / 2
    assert lower.masks.any((0, 2)).nonzero()[0].min() >= world.SIZE / 2


@pytest.mark.parametrize("motion", NEW)
def test_every_shape_stays_inside_at_every_speed(motion: str) -> None:
    """Largest objects in the corners of where they may start."""
    kind = motions.MOTIONS[motion]
    shapes = np.array([world.SHAPES.index(name) for name in kind.shapes])
    any_scene = world.sample_scenes(np.random.default_rng(0), 4 * len(shapes))
    full = np.ones(4 * len(shapes))

    def corners(part: motions.Part) -> world.Scenes:
        return replace(
            any_scene,
            shape=np.repeat(shapes, 4),
            x=np.tile(np.repeat(part.x, 2), len(shapes)),
            y=np.tile(part.y, 2 * len(shapes)),
            radius=part.radius[1] * full,
            angle=0.0 * full,
        )

    for speed in (0.9, 1.0, 1.1):
        objects = tuple(corners(part) for part in kind.parts)
        for scenes in motions.perform(objects, motion, speed=speed * full):
            masks = world.coverage(scenes) > 0.5
            assert not masks[:, [0, -1]].any() and not masks[:, :, [0, -1]].any()


@pytest.mark.parametrize("motion", motions.MOTIONS)
def test_prompts_are_single_known_tokens_and_distinct(motion: str) -> None:
    prompt = motions.MOTIONS[motion].prompt
    assert prompt in world.MOTION_PHRASES
    assert set(prompt.split()) <= set(base.WORDS)
    assert [kind.prompt for kind in motions.MOTIONS.values()].count(prompt) == 1


def test_clips_and_cases_of_moves_right_are_those_of_former_releases() -> None:
    """Figures published for a seed would mean other objects if the random draws moved."""
    digest = hashlib.sha256()
    for seed in (0, 21):
        clips = cases.training_clips(seed)
        digest.update(clips.frames.tobytes() + "|".join(clips.captions).encode())
        for which in ("combination", "hard"):
            for case in cases.evaluation_cases(seed, which, count=16):
                digest.update(case.frames.tobytes() + case.prompt.encode())
    assert digest.hexdigest() == "bd92f2b2bbe80dae0fb05f48024753f6d6a717534b8e728af3fa6089cb62f3dc"


# --- who is seen, who is not -------------------------------------------------------------------


@pytest.mark.parametrize("motion", NEW)
@pytest.mark.parametrize("seed", range(4))
def test_no_unseen_object_is_in_the_clips(motion: str, seed: int) -> None:
    def objects(caption: str) -> list[tuple[str, str]]:
        names = caption.split(" on ")[0].split(" and ")
        return [(words.split()[1], words.split()[2]) for words in names]

    captions = cases.training_clips(seed, motion).captions
    shown = {pair for caption in captions for pair in objects(caption)}
    colours, shapes = {colour for colour, _ in shown}, {shape for _, shape in shown}
    assert len(captions) == 8 and len(shown) == 8 and len(colours) == len(shapes) == 4
    for case in cases.evaluation_cases(seed, "combination", motion):
        for colour, shape in objects(case.caption):
            assert colour in colours and shape in shapes and (colour, shape) not in shown
    for case in cases.evaluation_cases(seed, "hard", motion):
        for colour, shape in objects(case.caption):
            assert colour not in colours and shape not in shapes


@pytest.mark.parametrize("shape", world.SHAPES)
def test_only_shapes_whose_turn_can_be_seen_turn(shape: str) -> None:
    """Drawn at every angle: after which turn does the shape look as before?"""
    scene = cases.evaluation_cases(0, "hard", count=1)[0].targets[0].scenes[:1]
    one = scene.x * 0 + 1.0
    upright = replace(
        scene,
        shape=scene.shape * 0 + world.SHAPES.index(shape),
        x=16.0 * one,
        y=16.0 * one,
        radius=9.0 * one,
    )
    turns = np.arange(10.0, 361.0, 2.0)
    turned = world.coverage(replace(upright.repeat(len(turns)), angle=np.deg2rad(turns)))
    alike = turns[measures.overlap(turned, world.coverage(upright)) > 0.98]
    kind = motions.MOTIONS["rotate"]
    if len(alike) == len(turns):
        assert motions.TURN_PERIODS[shape] == 0 and shape not in kind.shapes
        return
    assert motions.TURN_PERIODS[shape] == pytest.approx(alike.min(), abs=2.0)
    # the whole turn at the highest speed must not look like one to the other side
    fits = np.rad2deg(7 * kind.pace * 1.1) < alike.min() / 2
    assert fits == (shape in kind.shapes)


def test_two_objects_are_alike_and_each_is_measured_in_its_own_half() -> None:
    for case in unseen("two_objects", 12):
        one, other = case.targets
        assert one.colour == other.colour and (one.scenes.shape == other.scenes.shape).all()
        assert not (one.field & other.field).any() and (one.field | other.field).all()
        for target in case.targets:
            assert not (target.masks & ~target.field).any()


def test_a_number_of_clips_that_leaves_nothing_unseen_is_refused() -> None:
    with pytest.raises(LampError, match="12"):
        cases.training_clips(0, "rotate", clips=14)
    with pytest.raises(LampError, match="14"):
        cases.training_clips(0, clips=7)
    with pytest.raises(LampError, match="'hard'"):
        cases.evaluation_cases(0, "combination", clips=4)


# --- the scores ------------------------------------------------------------------------------


@pytest.mark.parametrize("motion", NEW)
def test_the_truth_is_followed(motion: str) -> None:
    for result in scores(motion, 1.0):
        # edge pixels that are half object may count either way; angles are found to a degree
        assert result.worst > 0.97 and result.nrmse < 0.05
        assert result.gain == pytest.approx(1.0, abs=0.04) and result.followed


@pytest.mark.parametrize("motion", NEW)
def test_a_still_video_fails(motion: str) -> None:
    for case in unseen(motion):
        result = score.score_clip(score.static_video(case), case)
        # a turned shape may fit frame 1 a degree better than the upright one
        assert result.nrmse == pytest.approx(1.0, abs=0.03 if motion == "rotate" else 1e-6)
        assert result.gain == pytest.approx(0.0, abs=0.03 if motion == "rotate" else 1e-6)
        assert not result.followed


@pytest.mark.parametrize("motion", NEW)
def test_half_the_speed_fails(motion: str) -> None:
    assert not any(result.followed or result.paced for result in scores(motion, 0.5))


@pytest.mark.parametrize("motion", NEW)
@pytest.mark.parametrize("speed", cases.SPEEDS)
def test_the_speed_of_any_clip_is_followed(motion: str, speed: float) -> None:
    assert all(result.paced for result in scores(motion, speed))


def test_a_speed_far_beyond_the_clips_is_not_followed() -> None:
    assert not any(result.paced for result in scores("wave", 1.35))
    static = [score.score_clip(score.static_video(case), case) for case in unseen("wave")]
    assert not any(result.paced for result in static)


def test_two_objects_must_have_the_same_speed() -> None:
    """Each at its own extreme, they differ by more than the error that is allowed."""
    case = unseen("two_objects")[0]
    slow, fast = (case.at_speed(speed) for speed in (0.6, 1.4))
    assert all((a.masks[0] == b.masks[0]).all() for a, b in zip(slow, fast, strict=True))
    video = world.draw(slow[0].scenes, fast[1].scenes)[0]
    assert not score.score_clip(video, case).paced


@pytest.mark.parametrize("motion", ["rotate", "grow", "two_objects"])
@pytest.mark.parametrize("speed", [0.5, 0.8, 1.2])
def test_a_steady_motion_at_another_speed_has_that_gain_and_error(
    motion: str, speed: float
) -> None:
    """The path is the truth times the speed, so the error is what is missing of it."""
    for result in scores(motion, speed):
        assert result.gain == pytest.approx(speed, abs=0.05)
        assert result.nrmse == pytest.approx(abs(1.0 - speed), abs=0.05)


@pytest.mark.parametrize("motion", ["bounce", "wave"])
@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1])
def test_a_swinging_path_at_another_speed_has_the_formulas_error(motion: str, speed: float) -> None:
    (target,) = unseen(motion, 1)[0].targets
    change = motions.MOTIONS[motion].parts[0].change
    pace = motions.MOTIONS[motion].pace
    truth, other = (
        np.stack([scenes.x - scenes.x[0], scenes.y - scenes.y[0]])
        for scenes in (change(target.scenes[:1].repeat(8), pace * f * TIME) for f in (1.0, speed))
    )
    wanted = math.sqrt(((other - truth) ** 2).sum() / (truth**2).sum())
    found = [result.nrmse for result in scores(motion, speed)]
    assert np.median(found) == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("motion", [name for name in motions.MOTIONS if name != "two_objects"])
@pytest.mark.parametrize("other", [name for name in motions.MOTIONS if name != "two_objects"])
def test_another_motion_fails(motion: str, other: str) -> None:
    results = [score.score_clip(played(case, other), case) for case in unseen(motion)[::2]]
    assert all(result.followed == (motion == other) for result in results)


@pytest.mark.parametrize("motion", ["rotate", "grow"])
def test_drifting_away_while_turning_or_growing_fails(motion: str) -> None:
    for case in unseen(motion)[::2]:
        (target,) = case.targets
        away = replace(target.scenes, x=target.scenes.x + 0.6 * TIME)
        result = score.score_clip(world.draw(away)[0], case)
        path = motions.MOTIONS[motion].pace * (target.scenes.radius[0] if motion == "rotate" else 1)
        assert result.nrmse == pytest.approx(0.6 / path, rel=0.2)
        assert not result.followed


@pytest.mark.parametrize("angle", [-30.0, 7.0, 41.0])
def test_angles_are_found_to_three_degrees(angle: float) -> None:
    for case in unseen("rotate")[::3]:
        (target,) = case.targets
        turned = replace(target.scenes, angle=target.scenes.angle * 0 + math.radians(angle))
        turned = replace(turned, x=turned.x + 1.3, y=turned.y - 0.4)
        found = np.rad2deg(measures.angles(world.coverage(turned), target))
        period = motions.TURN_PERIODS[world.SHAPES[target.scenes.shape[0]]]
        error = (found - angle + period / 2) % period - period / 2
        np.testing.assert_allclose(error, 0.0, atol=3.0)
        # of the angles at which a symmetric shape looks the same, the one nearest to the truth
        assert np.abs(found - np.rad2deg(target.scenes.angle)).max() <= period / 2 + 1.0


def test_a_blob_has_not_turned() -> None:
    for case in unseen("rotate")[::3]:
        (target,) = case.targets
        blob = replace(target.scenes, shape=target.scenes.shape * 0 + world.SHAPES.index("disc"))
        frames = case.frames.copy()
        frames[1:] = world.draw(blob)[0][1:]
        assert not score.score_clip(frames, case).followed


def test_radii_are_those_of_the_scene() -> None:
    for case in unseen("grow"):
        (target,) = case.targets
        cover = measures.object_cover(case.frames, target.colour, case.ground)
        np.testing.assert_allclose(measures.radii(cover, target), target.scenes.radius, rtol=0.02)
        assert np.isnan(measures.radii(0.0 * cover, target)).all()


@pytest.mark.parametrize("lost", [0, 1])
def test_of_two_objects_both_must_move(lost: int) -> None:
    for case in unseen("two_objects", 4):
        start = [target.scenes[:1].repeat(8) for target in case.targets]
        mixed = [target.scenes for target in case.targets]
        mixed[lost] = start[lost]
        result = score.score_clip(world.draw(*mixed)[0], case)
        assert not result.followed
        assert result.nrmse == pytest.approx(1.0, abs=0.02) and abs(result.gain) < 0.02
        # the mean of a perfect and of a still object
        assert result.iou == pytest.approx((1.0 + result.worst) / 2, abs=0.03)


# --- the benchmark ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "motion, which", [(motion, which) for motion, sets in benchmark.MARKS.items() for which in sets]
)
def test_marks_are_reached_by_the_truth_and_by_nothing_slow_or_still(
    motion: str, which: str
) -> None:
    few = cases.evaluation_cases(11, which, motion, count=5)
    marks = benchmark.MARKS[motion][which]
    videos = {
        "truth": [case.frames for case in few],
        "half": [played(case, motion, 0.5) for case in few],
        "still": [score.static_video(case) for case in few],
    }
    reached = {
        name: benchmark.reaches(benchmark.measure(np.stack(made), few), marks)
        for name, made in videos.items()
    }
    assert reached == {"truth": True, "half": False, "still": False}


def test_several_runs_are_summarised_per_motion() -> None:
    def run(motion: str, seed: int, iou: float, passed: bool) -> dict[str, Any]:
        row = dict.fromkeys(benchmark.COLUMNS, 0.5) | {"iou": iou}
        figures = {which: {"tuned": row} for which in benchmark.SETS}
        return {"motion": motion, "seed": seed, "figures": figures, "pass": passed}

    results = [run("grow", 1, 0.7, True), run("grow", 2, 0.6, True), run("wave", 1, 0.4, False)]
    args = benchmark.parse(["--motions", "grow,wave", "--alpha", "0.5"])
    final = benchmark.summary(results, benchmark.chosen_recipes(args))
    assert not final["pass"]
    assert {kind: part["pass"] for kind, part in final["motions"].items()} == {
        "grow": True,
        "wave": False,
    }
    assert final["motions"]["grow"]["spread"]["hard"]["iou"] == [0.6, 0.7]
    recipes = [part["recipe"] for part in final["motions"].values()]
    assert [recipe["alpha"] for recipe in recipes] == [0.5, 0.5]
    # what is not given on the command line stays the motion's own
    assert recipes[0]["adain"] == RECIPES["grow"].adain
    assert benchmark.parse(["--motions", "all"]).motions == list(motions.MOTIONS)
    assert list(benchmark.MARKS) == list(RECIPES) == list(motions.MOTIONS)
