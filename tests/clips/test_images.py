"""Resizing images: against the official first frame, Pillow, and geometry by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lamp.clips.images import fit_images
from lamp.errors import LampError

DATA = Path(__file__).parents[1] / "data"


def test_plain_stretch_is_the_official_first_frame():
    """The official code uses integers; 0.75 of a level is its rounding."""
    official = load_file(DATA / "first_frame.safetensors")
    source = official["source_bgr_u8"].flip(-1)[None].float() / 255
    ours = fit_images(source, 128, 80, fit="stretch", antialias=False)
    expected = official["out_u8"].movedim(1, -1).float() / 255
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.75 / 255)


@pytest.mark.parametrize("size", [(64, 40), (16, 16), (200, 136)])
def test_antialiased_stretch_is_pil_bilinear(size):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    ours = fit_images(torch.from_numpy(pixels)[None].float() / 255, *size, fit="stretch")
    assert np.abs(ours[0].numpy() * 255 - expected).max() < 1.0


def disc(height: int, width: int, radius: float) -> torch.Tensor:
    """A white disc on grey in the middle of ``1 h w 3``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    inside = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < radius**2
    return torch.where(inside, 1.0, 0.3)[None, ..., None].expand(1, height, width, 3)


def extent(image: torch.Tensor) -> tuple[int, int]:
    """Height and width of the part brighter than the grey."""
    bright = image[0, ..., 0] > 0.65
    return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize("source", [(90, 160), (160, 90), (97, 101), (33, 400)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_crop_and_pad_keep_round_things_round(source, fit):
    height, width = extent(fit_images(disc(*source, radius=14), 128, 80, fit=fit))
    assert min(height, width) >= 8
    if fit == "crop" and height == 80:  # taller than the target: only its width can be judged
        return
    assert abs(height - width) <= 2


def test_stretch_squeezes():
    height, width = extent(fit_images(disc(90, 160, radius=30), 80, 80, fit="stretch"))
    assert height > 1.5 * width


def test_pad_adds_black_bars_on_both_sides():
    fitted = fit_images(torch.ones(2, 40, 40, 3), 128, 64, fit="pad")
    assert fitted.shape == (2, 64, 128, 3)
    assert (fitted[:, :, 32:96] == 1).all()
    assert (fitted[:, :, :32] == 0).all() and (fitted[:, :, 96:] == 0).all()


def test_crop_takes_the_middle():
    ramp = torch.arange(300.0)[None, None, :, None].expand(1, 100, 300, 3)
    fitted = fit_images(ramp, 96, 96)
    assert fitted.mean().item() == pytest.approx(149.5, abs=0.6)
    assert fitted.min() > 98 and fitted.max() < 201


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("source", [(1, 1), (7, 3000), (3000, 7), (81, 127), (80, 128)])
def test_any_source_gives_the_target_size(fit, source):
    fitted = fit_images(torch.full((1, *source, 3), 0.5), 128, 80, fit=fit)
    assert fitted.shape == (1, 80, 128, 3)
    assert fitted.max().item() == pytest.approx(0.5, abs=1e-6)
    if fit != "pad":
        assert fitted.min().item() == pytest.approx(0.5, abs=1e-6)


def test_the_right_size_stays_unchanged():
    images = torch.rand(2, 16, 24, 3)
    assert torch.equal(fit_images(images, 24, 16), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype(dtype):
    value = 201 if dtype == torch.uint8 else 0.75
    fitted = fit_images(torch.full((1, 50, 70, 3), value, dtype=dtype), 32, 24)
    assert fitted.dtype == dtype
    torch.testing.assert_close(fitted, torch.full_like(fitted, value), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(511, 320), (512, 0), (512, -8), (4, 320)])
def test_sizes_off_the_latent_grid(width, height):
    with pytest.raises(LampError, match="multiple of 8, not"):
        fit_images(torch.zeros(1, 8, 8, 3), width, height)


def test_the_error_suggests_a_size():
    with pytest.raises(LampError, match="width .* not 510. Use 512"):
        fit_images(torch.zeros(1, 8, 8, 3), 510, 320)


def test_bad_images_and_fit_are_named():
    with pytest.raises(LampError, match=r"shape n h w c, not \(8, 8, 3\)"):
        fit_images(torch.zeros(8, 8, 3), 16, 16)
    with pytest.raises(LampError, match="Unknown fit 'fill'"):
        fit_images(torch.zeros(1, 8, 8, 3), 16, 16, fit="fill")
