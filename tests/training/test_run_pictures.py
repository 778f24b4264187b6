"""The pictures of a run: samples, animations, the plot of the losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.samples.small_training import FRAMES, small_clips, small_host
from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.training.loop import Training
from lamp.training.plots import loss_plot
from lamp.training.recipe import TrainConfig
from lamp.training.samples import Samples, sample_clip, save_animation, save_loss_plot

FIRST = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
TEXT, EMPTY = torch.ones(1, 5, 16), torch.zeros(1, 5, 16)
ORANGE = np.array((214, 96, 24))


def trained(with_samples: bool) -> Training:
    host = small_host()
    config = TrainConfig(steps=3, frames=FRAMES, learning_rate=1e-2, ema=0.9)
    motion = Motion(map_unet(host.unet)).initialise(0)
    training = Training(host, motion, small_clips(), config)
    while training.step < config.steps:
        training.advance()
        if with_samples:
            sample_clip(training, FIRST, TEXT, EMPTY, steps=2)
    return training


def test_a_sample_shows_the_averaged_parameters_under_guidance() -> None:
    training = trained(with_samples=False)
    seen = sample_clip(training, FIRST, TEXT, EMPTY, steps=2, guidance=3.0, seed=5)
    training.finish()
    expected = sample(
        training.host,
        training.motion,
        FIRST[None],
        share_noise(draw_noise(FRAMES, 4, 8, 8, seed=5), 0.2),
        TEXT,
        EMPTY,
        steps=2,
        guidance=3.0,
        schedule=AdaINSchedule("paper"),
    )
    assert torch.equal(seen, expected)
    assert torch.equal(seen[0], FIRST)


def test_only_a_sample_of_the_size_of_the_clips_has_scores(tmp_path: Path) -> None:
    """ComfyUI shows latents as small pictures if there is no memory for the VAE. Motion in them
    has other pixels."""
    training, said, sizes = trained(with_samples=False), [], iter([4, 4, 8, 4])
    latents = training.batches.clips
    decode = lambda video: torch.rand(len(video), *[next(sizes)] * 2, 3)  # noqa: E731
    samples = Samples(tmp_path, latents, decode, guidance=1.0, say=said.append)
    for known in (0, 0, 1, 1):
        samples(training)
        assert len(training.sample_scores) == known
    assert len(said) == 2 and all("4 x 4" in text for text in said)


def test_samples_do_not_change_what_is_learned() -> None:
    plain, sampled = trained(with_samples=False), trained(with_samples=True)
    assert plain.losses == sampled.losses
    for one, other in zip(plain.trained, sampled.trained, strict=True):
        assert torch.equal(one, other)
    assert all(parameter.requires_grad for parameter in sampled.trained)


def test_an_animation_plays_its_frames_at_their_rate(tmp_path: Path) -> None:
    frames = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 16, 24, 3)
    path = save_animation(tmp_path / "new" / "sample.webp", frames, fps=8)
    with Image.open(path) as picture:
        assert (picture.n_frames, picture.size) == (4, (24, 16))  # type: ignore[attr-defined]
        for number in range(4):
            picture.seek(number)
            seen = np.asarray(picture.convert("RGB"), dtype=float) / 255
            assert picture.info["duration"] == 125
            assert np.abs(seen - number / 3).max() < 0.03
    assert [file.name for file in path.parent.iterdir()] == ["sample.webp"]


def test_the_plot_shows_the_loss_on_held_out_clips_where_it_was_measured(tmp_path: Path) -> None:
    losses = [1.0] * 51 + [0.1] * 50
    held_out = [(51, 0.01), (101, 0.1)]
    path = save_loss_plot(tmp_path / "loss.png", losses, held_out)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels == ORANGE).all(-1) & (np.arange(360)[:, None] > 60))
    # The plot's box reaches from (56, 16) to (624, 332), 1.0 at its top and 0.01 at its bottom.
    assert columns.min() == pytest.approx((56 + 624) / 2, abs=3)
    assert columns.max() == pytest.approx(624, abs=3)
    assert rows.max() == pytest.approx(332, abs=3)
    assert rows.min() == pytest.approx((16 + 332) / 2, abs=3)


def test_without_held_out_clips_there_is_no_third_curve() -> None:
    pixels = (loss_plot([0.5, 0.4, 0.3])[0].numpy() * 255).round().astype(int)
    assert not (pixels == ORANGE).all(-1).any()


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LampError, match=r"sample\.webp could not be written.*sample_every"):
        save_animation(tmp_path / "file" / "sample.webp", torch.zeros(2, 8, 8, 3), 8)
