"""All samples of a run side by side, in one picture and one animation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lamp.errors import LampError
from lamp.training.compare import read_samples, save_comparison
from lamp.training.stopping import HELD_OUT, MOTION, Measured
from tests.helpers.disks import full_disk

COLOURS = {100: (250, 0, 0), 2000: (0, 250, 0), 300: (0, 0, 250)}


def write_sample(
    folder: Path, step: int, frames: int = 5, size: tuple[int, int] = (64, 32)
) -> None:
    """Frames of the step's colour, each darker than the one before."""
    colour = np.array(COLOURS.get(step, (90, 90, 90)))
    pictures = [
        Image.fromarray(np.full((32, 64, 3), colour * (1 - k / 8), np.uint8)) for k in range(frames)
    ]
    path = folder / f"sample-step{step:06}.webp"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=125, lossless=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in COLOURS:
        write_sample(tmp_path, step)
    return tmp_path


def test_one_row_for_each_sample_in_the_order_of_the_steps(folder: Path) -> None:
    paths = save_comparison(folder)
    assert [path.name for path in paths] == ["samples.png", "samples.webp"]
    picture = np.asarray(Image.open(paths[0]).convert("RGB"))
    assert picture.shape == (3 * (32 + 30), 8 * 64, 3)
    for row, step in enumerate(sorted(COLOURS)):
        middle = row * 62 + 30 + 16
        assert tuple(picture[middle, 32]) == COLOURS[step]
        assert tuple(picture[middle, 4 * 64 + 32]) == tuple(c // 2 for c in COLOURS[step])


def test_the_animation_shows_all_samples_at_once(folder: Path) -> None:
    with Image.open(save_comparison(folder)[1]) as film:
        frame = np.asarray(film.convert("RGB")).astype(int)
        assert film.n_frames == 5 and film.info["duration"] == 125
    centres = [(30 + 16, 32), (30 + 16, 150 + 32), (62 + 30 + 16, 32)]
    for centre, step in zip(centres, sorted(COLOURS), strict=True):
        assert np.abs(frame[centre] - COLOURS[step]).max() < 40


def test_scores_and_the_best_one_are_written(folder: Path) -> None:
    def labels(*given: object) -> np.ndarray:
        picture = np.asarray(Image.open(save_comparison(folder, *given)[0]).convert("L"))  # type: ignore[arg-type]
        return np.stack([picture[62 * row : 62 * row + 30, :150] for row in range(3)])

    plain = labels()
    scored = labels([Measured(300, {HELD_OUT: 0.5, MOTION: 0.1})], 300)
    assert (plain[0] == scored[0]).all() and (plain[2] == scored[2]).all()
    assert (scored[1] < 128).sum() > 1.5 * (plain[1] < 128).sum()


def test_damaged_samples_are_left_out_and_long_runs_are_thinned(folder: Path) -> None:
    (folder / "sample-step000150.webp").write_bytes(b"damaged")
    assert [sample.step for sample in read_samples(folder)] == sorted(COLOURS)
    for step in range(10_000, 10_040):
        write_sample(folder, step, frames=2)
    steps = [sample.step for sample in read_samples(folder)]
    assert len(steps) <= 24 and steps[0] == 100 and steps[-1] == 10_039


def test_one_sample_is_nothing_to_compare(tmp_path: Path) -> None:
    assert save_comparison(tmp_path) == []
    write_sample(tmp_path, 100)
    assert save_comparison(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named_and_leaves_the_old_comparison(folder: Path) -> None:
    before = {path: path.read_bytes() for path in save_comparison(folder)}
    assert {path.name for path in before} == {"samples.png", "samples.webp"}
    write_sample(folder, 4000)
    with full_disk(0), pytest.raises(LampError, match="samples.png.*disk space"):
        save_comparison(folder)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(folder.iterdir())) == 6  # no temporary file
