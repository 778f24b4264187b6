"""The ablations: each variant lacks its part and nothing else; figures of known videos."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.samples.small_training import FRAMES, small_clips, small_host
from benchmarks.toy import ablations, ablations_report, ablations_scenes, ablations_sprites
from benchmarks.toy.ablations import FULL, VARIANTS, Kept, NoFirstFrame, PlainConvs, film, free_loss
from benchmarks.toy.runs import MOTION_GUIDANCE, RECIPES, Sampler, fresh_motion
from lamp.errors import LampError
from lamp.method.architecture import map_unet
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.toy.base import load_toy_base
from lamp.toy.cases import Case, evaluation_cases
from lamp.toy.scenes import cases as scenes_cases
from lamp.toy.scenes.cases import SceneCase
from lamp.training.loop import Training
from lamp.training.recipe import TrainConfig
from tests.helpers.small_models import TEXT_WIDTH, build, random_state

WORLD = ablations_sprites.WORLD

pytestmark = pytest.mark.slow  # many of them


@pytest.fixture(scope="module")
def host() -> Host:
    return build("diffusers", random_state())


def randomised(motion: Motion) -> Motion:
    generator = torch.Generator().manual_seed(3)
    for parameter in motion.requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return motion


# --- tuned variants --------------------------------------------------------------------------


@pytest.mark.parametrize(("parts", "looks_ahead"), [(Motion, False), (PlainConvs, True)])
def test_only_the_plain_convolution_sees_the_next_frame(
    host: Host, parts: type[Motion], looks_ahead: bool
) -> None:
    motion = randomised(parts(map_unet(host.unet)))
    site = motion.sites.convs[0]
    layer = motion.get_submodule(site.name)
    y = torch.randn(5, site.channels, 6, 6, generator=torch.Generator().manual_seed(4))
    later = y.clone()
    later[3] += 1.0
    changed = (layer(y, 5) - layer(later, 5)).abs().amax((1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, False, looks_ahead, True, True]


def test_the_plain_convolution_is_the_centred_formula() -> None:
    layer = ablations.PlainConv1d(3, 2, 3)
    video = torch.randn(2, 4, 3, 5, 6, generator=torch.Generator().manual_seed(5))
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    padded = np.pad(video.numpy(), ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    wanted = sum(
        np.einsum("oc,bfchw->bfohw", weight[:, :, tap], padded[:, tap : tap + 4])
        for tap in range(3)
    )
    found = layer(video).detach().numpy()
    np.testing.assert_allclose(found, wanted + bias[:, None, None], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_the_first_frame_each_frame_is_the_image_models_own(host: Host) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(4, 4, 8, 8, generator=generator)
    text, t = torch.randn(1, 7, TEXT_WIDTH, generator=generator), torch.tensor([500])
    alone = torch.cat([host.predict(frame[None], t, text) for frame in x])
    for parts, same in ((NoFirstFrame, True), (Motion, False)):
        motion = parts(map_unet(host.unet)).initialise()
        with motion.attached(host.unet, FrameLayout(4), groupnorm="frame"):
            found = host.predict(x, t, text)
        assert torch.allclose(found, alone, atol=1e-5) == same


@pytest.mark.parametrize("min_snr", [0.0, 1.0])
def test_without_the_first_frame_all_frames_are_noise_and_count(min_snr: float) -> None:
    seen: list[Tensor] = []
    stub: Any = SimpleNamespace(
        alphas_cumprod=torch.tensor([0.9, 0.2]),
        predict=lambda x, t, text: seen.append(x) or torch.zeros_like(x),
    )
    generator = torch.Generator().manual_seed(7)
    latents, noise = torch.randn(2, 6, 4, 2, 2, generator=generator)
    steps = torch.tensor([0, 1])
    loss = free_loss(stub, latents, noise, steps, torch.zeros(2, 1, 1), min_snr)
    alphas = np.repeat([0.9, 0.2], 3)[:, None, None, None]
    wanted = np.sqrt(alphas) * latents.numpy() + np.sqrt(1 - alphas) * noise.numpy()
    np.testing.assert_allclose(seen[0].numpy(), wanted, rtol=1e-5, atol=1e-6)
    errors = (noise.numpy() ** 2).reshape(2, -1).mean(1)
    snr = np.array([9.0, 0.25])
    weights = np.minimum(snr, min_snr) / snr if min_snr else np.ones(2)
    assert loss.item() == pytest.approx(float((errors * weights).mean()), rel=1e-5)
    both = free_loss(stub, latents, noise, steps, torch.zeros(2, 1, 1), min_snr, 0.5)
    changes = np.diff(noise.numpy().reshape(2, 3, -1), axis=1)
    more = ((changes**2).reshape(2, -1).mean(1) * weights).mean()
    assert both.item() - loss.item() == pytest.approx(0.5 * float(more), rel=1e-4)


def test_the_difference_loss_reaches_the_variant_without_a_first_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(
        ablations, "free_loss", lambda *given: seen.append(given[-1]) or given[1].sum()
    )
    small = small_host()
    motion = Motion(map_unet(small.unet)).initialise(0)
    config = TrainConfig(steps=2, frames=FRAMES, difference_loss=0.25)
    training = ablations.FreeTraining(small, motion, small_clips(), config)
    training._loss(*training._next_batch())
    assert seen == [0.25]


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.tuned])
def test_each_variant_tunes_all_but_its_own_part(name: str) -> None:
    variant, small = VARIANTS[name], small_host()
    motion = variant.parts(map_unet(small.unet)).initialise(0)
    before = {key: value.clone() for key, value in motion.state_dict().items()}
    kind = Training if variant.first_frame else ablations.FreeTraining
    training = kind(
        small, motion, small_clips(), TrainConfig(steps=2, frames=FRAMES, learning_rate=1e-2)
    )
    for _ in range(2):
        training.advance()
    after = motion.state_dict()
    learned = {
        part
        for part in ("conv1d", "conv_gate", "attn_temp", "attn1.to_q")
        if any(f".{part}." in key and not torch.equal(after[key], before[key]) for key in after)
    }
    without = {
        "no motion convolutions": {"conv1d", "conv_gate"},
        "no temporal attention": {"attn_temp"},
    }.get(name, set())
    assert learned == {"conv1d", "conv_gate", "attn_temp", "attn1.to_q"} - without
    if name == "no temporal attention":
        assert all(not after[key].any() for key in after if ".to_out." in key)


def test_sampling_variants_change_one_setting_each() -> None:
    full = replace(RECIPES["moves_right"], motion_guidance=1.0)
    changes = {name: variant.recipe(full) for name, variant in VARIANTS.items()}
    assert changes["no shared noise"] == replace(full, alpha=0.0)
    assert changes["no AdaIN"] == replace(full, adain="off")
    guided = replace(full, motion_guidance=MOTION_GUIDANCE)
    assert changes["with motion guidance"] == guided != full
    others = set(VARIANTS) - {"no shared noise", "no AdaIN", "with motion guidance"}
    assert all(changes[name] == full for name in others)
    lacking = {name for name, variant in VARIANTS.items() if not variant.histogram}
    assert lacking == {"no histogram matching"}


@pytest.mark.slow
def test_videos_begin_with_the_given_frame_and_have_its_colours() -> None:
    toy = load_toy_base()
    recipe = replace(RECIPES["moves_right"], sample_steps=2)
    cases = evaluation_cases(0, "hard", "moves_right", count=1)
    motion = fresh_motion(toy, 0).requires_grad_(False)
    names = (FULL, "no histogram matching", "no first frame")
    sampler = Sampler(toy, motion, recipe)
    full, unmatched, free = (film(sampler, VARIANTS[n], cases)[0] for n in names)
    assert np.array_equal(full[0], cases[0].first_frame)
    assert np.array_equal(unmatched[0], cases[0].first_frame)
    assert np.abs(free[0].astype(int) - cases[0].first_frame).mean() > 10
    reference = ablations.decoded_first_frames(toy, cases)[0]

    def off(video: np.ndarray) -> float:
        """Mean distance of the colours' distribution to the reference's."""
        frames = np.sort(video[1:].reshape(7, -1, 3).astype(float), axis=1)
        return float(np.abs(frames - np.sort(reference.reshape(-1, 3), axis=0)).mean())

    assert off(full) < 2.0 < off(unmatched)


# --- measures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case() -> Case:
    return evaluation_cases(0, "combination", "moves_right", count=1)[0]


def test_the_truth_is_faithful_steady_and_smooth(case: Case) -> None:
    figures = ablations_sprites.steadiness(case.frames, case, case.first_frame)
    assert figures["fidelity"] > 40 and figures["flicker"] < 0.1
    assert figures["jerk"] < 0.3  # masks have whole pixels


def test_a_flickering_ground_shows_by_how_much(case: Case) -> None:
    video = case.frames.astype(int)
    video[1::2] += np.where(video[1::2] > 127, -6, 6)
    found = ablations_sprites.steadiness(video.astype(np.uint8), case, case.first_frame)
    assert found["flicker"] == pytest.approx(6.0, abs=0.2)
    # Four of the seven frames are off by 6.
    decibels = 10 * np.log10(255**2 / (36 * 4 / 7))
    assert found["fidelity"] == pytest.approx(decibels, abs=0.3)


def test_an_object_that_leaps_is_not_smooth(case: Case) -> None:
    video = case.frames.copy()
    video[2::2] = video[1:-1:2]  # it waits a frame, then goes two frames' way
    leap = ablations_sprites.steadiness(video, case, case.first_frame)["jerk"]
    # Steps of 2, 0, 2, 0, ... frames' way differ by 2 of them each time.
    assert leap == pytest.approx(2.0, abs=0.4)


@pytest.fixture(scope="module")
def scene() -> SceneCase:
    return scenes_cases.evaluation_cases(0, "smile", count=1)[0]


def test_the_true_scene_is_faithful_and_moves(scene: SceneCase) -> None:
    found = ablations_scenes.measure(scene.frames[None], [scene], scene.frames[None, 0])
    assert found["motion"] > 0.7 and found["overlap"] == found["change"] == 1.0
    assert found["fidelity"] > 40 and found["flicker"] < 0.1


def test_a_flickering_landscape_shows_by_how_much(scene: SceneCase) -> None:
    video = scene.frames.astype(int)
    video[1::2] += np.where(video[1::2] > 127, -6, 6)
    found = ablations_scenes.steadiness(video.astype(np.uint8), scene, scene.first_frame)
    assert found["flicker"] == pytest.approx(6.0, abs=0.2)
    decibels = 10 * np.log10(255**2 / (36 * 4 / 7))  # four of the seven frames are off by 6
    assert found["fidelity"] == pytest.approx(decibels, abs=0.3)


def test_every_claim_names_a_variant_and_measures_of_its_world() -> None:
    for world in (ablations_sprites.WORLD, ablations_scenes.WORLD):
        for _, variant, names, than in world.claims:
            assert variant in VARIANTS and than in {"", *VARIANTS}
            assert set(names) <= set(world.measures)


# --- a run -----------------------------------------------------------------------------------


def figures_of(**changes: float | None) -> dict[str, Any]:
    row = dict.fromkeys(WORLD.measures, 0.5) | changes
    return {"combination": row, "hard": row, "seconds": 1.0}


def test_a_stopped_run_goes_on_and_other_settings_are_refused(tmp_path: Path) -> None:
    kept = Kept(tmp_path, {"steps": 3})
    for name in VARIANTS:
        kept.add(f"{name}, 4", figures_of())
    again = Kept(tmp_path, {"steps": 3})
    toy: Any = None  # nothing is left to do, so no model is asked for anything
    recipe = RECIPES["moves_right"]
    done = list(ablations.runs(toy, WORLD, "moves_right", recipe, [4], 16, again))
    assert [name for name, _, _ in done] == list(VARIANTS)
    with pytest.raises(LampError, match=re.escape(str(tmp_path))):
        Kept(tmp_path, {"steps": 4})


def test_a_kept_motion_is_not_tuned_again(tmp_path: Path, host: Host) -> None:
    fresh = lambda: Motion(map_unet(host.unet))  # noqa: E731
    tuned = randomised(fresh())
    first = Kept(tmp_path, {}).motion("full-0", fresh(), lambda: tuned)

    def refuse() -> Motion:
        raise AssertionError("it was tuned again")

    again = Kept(tmp_path, {}).motion("full-0", fresh(), refuse)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def results_of(**rows: list[dict[str, float | None]]) -> dict[str, dict[int, Any]]:
    full = {0: figures_of(), 1: figures_of()}
    changed = {n.replace("_", " "): {s: figures_of(**v) for s, v in enumerate(r)}
               for n, r in rows.items()}  # fmt: skip
    return {name: changed.get(name, full) for name in VARIANTS}


def test_a_claim_is_shown_only_if_every_seed_shows_it() -> None:
    results = results_of(
        plain_convolution=[{"kept": 0.4, "iou": 0.4}, {"kept": 0.4, "iou": 0.6}],
        no_shared_noise=[{"jerk": 0.4}, {"jerk": 0.4}],
    )
    told = ablations_report.verdicts(results, FULL, WORLD.claims, WORLD.measures, WORLD.sets)
    by = {(c["variant"], c["measure"]): c["verdict"] for c in told if c["set"] == "hard"}
    assert by["plain convolution", "kept"] == "shown"
    assert by["plain convolution", "iou"] == "not shown"
    assert by["no shared noise", "jerk"] == "not shown"


def test_mean_and_deviation_over_the_seeds() -> None:
    rows = results_of(no_AdaIN=[{"iou": 0.2, "jerk": None}, {"iou": 0.4, "jerk": 2.0}])
    found = ablations_report.spread(rows, WORLD.measures, WORLD.sets)["no AdaIN"]["hard"]
    assert found["iou"] == pytest.approx([0.3, np.std([0.2, 0.4], ddof=1)], abs=1e-4)
    assert found["jerk"] == [2.0, 0.0]


@pytest.fixture
def drawn(tmp_path: Path) -> Iterator[ElementTree.Element]:
    path = tmp_path / "plot.svg"
    colours = dict(zip(WORLD.sets, ablations_report.COLOURS, strict=True))
    ablations_report.save_plot(path, results_of(), WORLD.measures, colours)
    yield ElementTree.parse(path).getroot()  # noqa: S314 - our own file


def test_the_plot_has_a_dot_for_every_figure(drawn: ElementTree.Element) -> None:
    circles = drawn.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(VARIANTS) * 2 * 2 * len(WORLD.measures) + 2
    width, height = (float(v) for v in drawn.attrib["viewBox"].split()[2:])
    assert all(0 < float(c.attrib["cx"]) < width for c in circles)
    assert all(0 < float(c.attrib["cy"]) < height for c in circles)
