"""The benchmark of the paper's eight motions, with a base of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.toy import scenes
from benchmarks.toy.runs import Recipe
from lamp.toy import base
from lamp.toy.scenes.base import VAE_CONFIG
from lamp.toy.scenes.cases import evaluation_cases
from lamp.toy.scenes.words import WORDS


def test_the_true_videos_pass_and_are_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--measures", "--motions", "rain,smile", "--cases", "1"]
    arguments += ["--save-gif", str(tmp_path)]
    assert scenes.main(arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["motions"]) == {"rain", "smile"}
    assert result["motions"]["rain"]["seeds"]["0"]["figures"]["still"]["motion"] == 0.0
    case = evaluation_cases(0, "smile", 1)[0]
    with Image.open(tmp_path / "smile_0.gif") as film:
        assert (film.n_frames, film.size) == (8, (3 * 64, 3 * 64))
        film.seek(7)
        last = np.asarray(film.convert("RGB"))[1::3, 1::3].astype(float)
    with Image.open(tmp_path / "motions.gif") as film:
        assert film.size == (2 * 3 * 64, 3 * 64)
    assert np.abs(last - case.frames[-1]).mean() < 12  # a GIF has 256 colours


@pytest.mark.slow
def test_a_motion_is_tuned_and_sampled() -> None:
    torch.manual_seed(0)
    toy = base.ToyBase(
        base.build_unet(), base.build_vae(VAE_CONFIG), base.build_text_encoder(), {"words": WORDS}
    )
    for model in (toy.unet, toy.vae, toy.text_encoder):
        model.eval().requires_grad_(False)
    cases = evaluation_cases(0, "horse", 1)
    recipe = Recipe(steps=1, sample_steps=2)
    videos = scenes.tuned_videos(toy, "horse", recipe, cases, seed=0)
    assert set(videos) == {"tuned", "untuned"}
    for one in videos.values():
        assert one.shape == (1, 8, 64, 64, 3)
        np.testing.assert_array_equal(one[0, 0], cases[0].first_frame)


def test_a_model_that_did_not_learn_does_not_pass() -> None:
    figures = {"true": {"motion": 1.0}, "still": {"motion": 0.0}, "wrong": {"motion": 0.2}}
    assert scenes.holds(figures)
    assert not scenes.holds({**figures, "still": {"motion": 0.3}})
    assert not scenes.holds({**figures, "wrong": {"motion": 0.5}})
    learned = {"tuned": {"motion": 0.6}, "untuned": {"motion": 0.1}}
    assert scenes.holds({**figures, **learned})
    assert not scenes.holds({**figures, **learned, "tuned": {"motion": 0.4}})


def test_an_unknown_motion_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scenes.parse(["--motions", "juggle"])
    assert "juggle" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--motions", "smile,rain"], ["--measures"], []])
def test_ablations_take_one_motion_and_a_base(given: list[str]) -> None:
    assert scenes.parse(["--ablations", "--motions", "smile"]).motions == ["smile"]
    with pytest.raises(SystemExit):
        scenes.parse(["--ablations", *given])
