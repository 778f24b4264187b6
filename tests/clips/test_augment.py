"""Distorted copies of clips: where a point goes, which windows are drawn, what is cached."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lamp.clips.augment import Warp, draw_warp, warped
from lamp.clips.clip_set import ClipSet, Window
from lamp.clips.load import clips_from_images
from lamp.clips.report import contact_sheet
from lamp.clips.settings import ClipSettings
from lamp.errors import LampError
from lamp.training.latents import cache_latents
from lamp.training.session import identity

STILL = Warp(0.0, 1.0, 0.0, 0.0, False)
WIDTH, HEIGHT = 64, 40


def blob(x: float, y: float, radius: float = 3.0) -> Tensor:
    """A white disc around a point in pixels, on black."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = np.hypot(columns - x, rows - y) < radius
    return torch.from_numpy(np.repeat(inside[..., None] * 255, 3, -1).astype(np.uint8))


def centre(picture: Tensor) -> tuple[float, float]:
    light = picture[..., 0].double().numpy()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return float((light * columns).sum() / light.sum()), float((light * rows).sum() / light.sum())


@pytest.mark.parametrize("angle", [0.0, 30.0, -90.0, 170.0])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("scale", "right", "down"), [(1.0, 0.0, 0.0), (1.4, 0.05, -0.1)])
def test_a_point_goes_where_the_formula_says(
    angle: float, mirrored: bool, scale: float, right: float, down: float
) -> None:
    x, y = 37.0, 17.0  # near the centre, so that no reflection comes in
    found = centre(warped(blob(x, y), Warp(math.radians(angle), scale, right, down, mirrored)))
    u, v = x - WIDTH / 2, y - HEIGHT / 2
    u = -u if mirrored else u
    turned = complex(u, v) * np.exp(1j * math.radians(angle)) * scale  # y points down: clockwise
    expected = (
        WIDTH / 2 + turned.real + right * WIDTH,
        HEIGHT / 2 + turned.imag + down * HEIGHT,
    )
    assert found == pytest.approx(expected, abs=0.3)


def test_nothing_changes_without_a_distortion_and_mirroring_is_exact() -> None:
    picture = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8)
    assert torch.equal(warped(picture, STILL), picture)
    assert torch.equal(warped(picture, replace(STILL, mirrored=True)), picture.flip(1))


def test_no_black_corners_come_in() -> None:
    grey = torch.full((HEIGHT, WIDTH, 3), 90, dtype=torch.uint8)
    assert torch.equal(warped(grey, Warp(2.0, 0.6, 0.3, -0.2, False)), grey)


def test_distortions_stay_within_the_settings_and_are_always_the_same() -> None:
    settings = ClipSettings(copies=9, turn=20.0, zoom=0.5, shift=0.1, flip=True)
    warps = [draw_warp(settings, clip, copy) for clip in range(40) for copy in range(1, 10)]
    assert warps == [draw_warp(settings, clip, copy) for clip in range(40) for copy in range(1, 10)]
    assert len({*warps}) == len(warps)
    angles, scales = ([getattr(w, name) for w in warps] for name in ("angle", "scale"))
    limit = math.radians(20.0)
    assert -limit <= min(angles) < -0.9 * limit and 0.9 * limit < max(angles) <= limit
    assert 1 / 1.5 <= min(scales) < 0.75 and 1.4 < max(scales) <= 1.5
    assert max(abs(w.right) for w in warps) <= 0.1 >= max(abs(w.down) for w in warps)
    assert 0.4 < np.mean([w.mirrored for w in warps]) < 0.6
    assert not any(draw_warp(replace(settings, flip=False), n, 1).mirrored for n in range(20))


def clips(**settings: Any) -> ClipSet:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(5, 16, 24, 3, generator=generator) for _ in range(3)]
    return clips_from_images(images, "turns", 3, 24, 16, **settings)


def test_a_copy_has_one_distortion_for_all_frames() -> None:
    made = clips(copies=2, turn=90.0)
    for copy in (1, 2):
        warp = draw_warp(made.settings, 1, copy)
        expected = torch.stack([warped(frame, warp) for frame in next(made.chunks(1))])
        assert torch.equal(next(made.chunks(1, copy=copy)), expected)
        assert torch.equal(made.frames(1, [0, 3], copy), expected[[0, 3]])


def test_half_of_the_windows_are_of_copies_each_equally_often() -> None:
    made = clips(copies=3)
    generator = torch.Generator().manual_seed(2)
    for clip in (None, 1):
        windows = [made.sample_window(generator, clip) for _ in range(6000)]
        counts = torch.bincount(torch.tensor([window.copy for window in windows])).tolist()
        expected = [3000, 1000, 1000, 1000]
        assert counts == [pytest.approx(count, rel=0.12) for count in expected]
        if clip is None:
            pairs = {(window.clip, window.copy) for window in windows}
            assert len(pairs) == 12


def test_without_copies_the_draws_are_as_before() -> None:
    """Three numbers: clip, start, mirrored."""
    made = clips(flip=True)
    drawn, numbers = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(50):
        pick, start, mirror = torch.rand(3, generator=numbers, dtype=torch.float64).tolist()
        assert made.sample_window(drawn) == Window(int(pick * 3), int(start * 3), mirror < 0.5)


def test_the_contact_sheet_shows_copies_of_the_first_clip() -> None:
    plain = contact_sheet(clips())
    row = plain.shape[1] // 3
    for copies, more in ((1, 1), (9, 3)):
        sheet = contact_sheet(clips(copies=copies, turn=90.0))
        assert sheet.shape[1] == pytest.approx(plain.shape[1] + more * row, abs=2 * more)
        assert torch.equal(sheet[:, : 3 * row], plain[:, : 3 * row])
        assert (sheet[:, 3 * row + 8 : 4 * row] - plain[:, 8:row]).abs().mean() > 0.05


def test_latents_of_copies_are_those_of_their_pictures() -> None:
    made = clips(copies=2, flip=True)

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = pixels.movedim(-1, 1).mean(1, keepdim=True).repeat(1, 4, 1, 1)
        return mean, torch.zeros_like(mean)

    latents = cache_latents(made, encode, lambda texts: {t: torch.zeros(1, 2, 3) for t in texts})
    for copy in (1, 2):
        found = latents.draw(Window(2, 1, copy=copy), torch.Generator()) / latents.scale
        expected = encode(made.frames(2, range(1, 4), copy).float() / 255)[0]
        torch.testing.assert_close(found, expected)


def test_a_run_with_other_copies_is_another_run() -> None:
    found = [
        identity("base", clips(**settings))["clips"]
        for settings in ({}, {"turn": 20.0}, {"copies": 2}, {"copies": 2, "turn": 20.0})
    ]
    assert found[0] == found[1]  # without copies, the limits have no effect
    assert len({*found}) == 3
    keys = [clips(copies=2, turn=turn).key(0, copy) for turn in (10.0, 20.0) for copy in (0, 1, 2)]
    assert keys[0] == keys[3] and len({*keys}) == 5


@pytest.mark.parametrize(
    ("name", "value"), [("copies", 65), ("turn", 181.0), ("zoom", -0.1), ("shift", 0.6)]
)
def test_a_value_outside_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(LampError, match=rf"{name} is {value:g}"):
        ClipSettings(**{name: value})


def test_a_direction_in_the_caption_is_told() -> None:
    def warnings(caption: str, turn: float) -> list[str]:
        images = [torch.rand(4, 16, 24, 3)]
        made = clips_from_images(images, caption, 3, 24, 16, copies=2, turn=turn)
        return [text for text in made.warnings if "turn" in text]

    (warning,) = warnings("a ball falls", 90.0)
    assert "90" in warning and "a ball falls" in warning
    assert not warnings("a ball falls", 10.0) and not warnings("a top spins", 180.0)
