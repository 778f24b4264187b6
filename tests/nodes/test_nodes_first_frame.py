"""LAMP First-Frame Condition, called as ComfyUI calls it, with fake VAEs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lamp.clips.load import clips_from_images
from lamp.errors import IncompatibleModelError, LampError
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile

Nodes = dict[str, Any]


def fake_vae(encode: Callable[[Tensor], Tensor], **facts: Any) -> Any:
    return SimpleNamespace(**{"encode": encode, "latent_channels": 4, "latent_dim": 2, **facts})


def shrink(picture: Tensor) -> Tensor:
    """A fake VAE: 8x smaller, brightness in all four channels."""
    grey = picture.mean(-1)[:, None]
    return F.avg_pool2d(grey, 8).expand(-1, 4, -1, -1) + 1.0


def painting(height: int = 96, width: int = 128, seed: int = 0) -> Tensor:
    """A colourful image `1 h w 3`, smooth at the scale of latents."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1)


def vae_of(latent_format: Any, texture: float = 0.2) -> Any:
    """A VAE of a family: the inverse of the host's map from latents to colours.

    The part of the four channels that the three colours do not determine is random, and so is fine
    texture.
    """
    factors = torch.tensor(latent_format.latent_rgb_factors)
    bias = torch.tensor(latent_format.latent_rgb_factors_bias or [0.0, 0.0, 0.0])

    def encode(picture: Tensor) -> Tensor:
        colours = F.avg_pool2d(picture.movedim(-1, 1) * 2 - 1, 8) - bias[:, None, None]
        latent = torch.einsum("bchw,ck->bkhw", colours, torch.linalg.pinv(factors))
        generator = torch.Generator().manual_seed(1)
        open_direction = torch.linalg.svd(factors.T).Vh[-1]
        amount = torch.randn(latent[:, :1].shape, generator=generator)
        noise = torch.randn(latent.shape, generator=generator)
        latent = latent + amount * open_direction[:, None, None] + texture * noise
        return latent_format.process_out(latent)

    return fake_vae(encode)


def condition(nodes: Nodes, vae: Any, image: Tensor, *size: Any) -> Tensor:
    return nodes["LAMP_FirstFrameCondition"].execute(vae, image, *size)[0]["samples"]


def numbers(message: str) -> set[str]:
    return set(re.findall(r"\d+", message))


def test_the_condition_holds_frame_1_and_zeros(node_classes: Nodes) -> None:
    image = painting(40, 64)
    latent = condition(node_classes, fake_vae(shrink), image, 64, 40, 5)
    assert latent.shape == (5, 4, 5, 8)
    assert torch.equal(latent[:1], shrink(image))
    assert not latent[1:].any()


def test_the_condition_fits_the_picture(node_classes: Nodes) -> None:
    image = torch.ones(1, 100, 50, 3)
    seen: list[Tensor] = []
    vae = fake_vae(lambda picture: seen.append(picture) or shrink(picture))
    for fit in ("crop", "pad", "stretch"):
        assert condition(node_classes, vae, image, 64, 32, 2, fit).shape == (2, 4, 4, 8)
    assert [tuple(picture.shape) for picture in seen] == [(1, 32, 64, 3)] * 3
    assert [round(picture.mean().item(), 2) for picture in seen] == [1.0, 0.25, 1.0]


def test_the_condition_takes_the_first_of_several_images(
    node_classes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    images = torch.cat([painting(seed=0), painting(seed=1)])
    with caplog.at_level(logging.WARNING):
        latent = condition(node_classes, fake_vae(shrink), images, 128, 96, 2)
    assert torch.equal(latent[:1], shrink(images[:1]))
    assert " 2 images" in caplog.text


def encoded(nodes: Nodes, image: Tensor) -> Tensor:
    """The image that the VAE receives."""
    seen: list[Tensor] = []
    vae = fake_vae(lambda picture: seen.append(picture) or shrink(picture))
    condition(nodes, vae, image, image.shape[2], image.shape[1], 2)
    return seen[0]


def test_the_condition_takes_grey_pictures(node_classes: Nodes) -> None:
    image = torch.rand(1, 16, 16, 1)
    assert torch.equal(encoded(node_classes, image), image.expand(1, 16, 16, 3))


def test_transparent_parts_are_black_as_in_training_clips(node_classes: Nodes) -> None:
    """The colours below transparency were never visible."""
    image = torch.rand(1, 16, 24, 4)
    image[:, :, :12, 3], image[:, :, 12:, 3] = 0.0, 1.0
    image[:, 4:8, :, 3] = 0.5
    shown = encoded(node_classes, image)
    torch.testing.assert_close(shown, image[..., :3] * image[..., 3:])
    clips = clips_from_images([image.expand(2, -1, -1, -1)], "x", 2, 24, 16)
    torch.testing.assert_close(shown[0], clips.frames(0, [0])[0] / 255, rtol=0, atol=0.6 / 255)


def test_values_outside_0_to_1_are_clipped(node_classes: Nodes) -> None:
    image = painting() * 1.7 - 0.35
    assert torch.equal(encoded(node_classes, image), image.clamp(0, 1))
    assert torch.equal(encoded(node_classes, image.double()), image.clamp(0, 1))


@pytest.mark.parametrize(("value", "colour"), [(1.0, "white"), (0.0, "black"), (250.0, "white")])
def test_an_image_of_one_colour_is_reported(
    node_classes: Nodes, caplog: pytest.LogCaptureFixture, value: float, colour: str
) -> None:
    image = torch.full((1, 96, 128, 3), value)
    image[0, 3, 4] = 0.5  # dust
    with caplog.at_level(logging.WARNING):
        condition(node_classes, fake_vae(shrink), image, 128, 96, 2)
    assert colour in caplog.text
    caplog.clear()
    image[0, :10] = 0.5
    condition(node_classes, fake_vae(shrink), image, 128, 96, 2)
    condition(node_classes, fake_vae(shrink), torch.full((1, 96, 128, 3), 0.1), 128, 96, 2)
    assert not caplog.text


def test_a_transparent_image_is_reported(
    node_classes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    image = torch.cat([painting(), torch.zeros(1, 96, 128, 1)], -1)
    condition(node_classes, fake_vae(shrink), image, 128, 96, 2)
    assert "black" in caplog.text


def test_a_16_bit_image_from_the_hosts_loader_is_reported(
    node_classes: Nodes, caplog: pytest.LogCaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import folder_paths

    import nodes

    ramp = np.linspace(3000, 60_000, 96 * 128).reshape(96, 128).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    image = nodes.LoadImage().load_image("a.png")[0]
    condition(node_classes, fake_vae(shrink), image, 128, 96, 2)
    white = (image > 0.999).float().mean() > 0.99  # newer hosts may scale it
    assert ("white" in caplog.text) == white


def test_errors_name_what_is_wrong(node_classes: Nodes) -> None:
    def refused(facts: str, *size: Any, vae: Any = None, image: Tensor | None = None) -> None:
        with pytest.raises(LampError, match=f"^LAMP First-Frame Condition: .*{facts}"):
            condition(
                node_classes,
                vae or fake_vae(shrink),
                painting() if image is None else image,
                *(size or (128, 96, 2)),
            )

    refused("width .*130.*128", 130, 96, 2)
    refused("height .* 0", 128, 0, 2)
    refused("frames .*1.*2", 128, 96, 1)
    refused("image.*NaN", image=torch.full((1, 96, 128, 3), float("nan")))
    nan = fake_vae(lambda picture: shrink(picture) * float("nan"))
    refused("VAE.*NaN.*--fp32-vae", vae=nan)
    refused("VAE.*16 .*SD 1.x.*4", vae=fake_vae(shrink, latent_channels=16))
    refused("video VAE.*4", vae=fake_vae(shrink, latent_dim=3))
    with pytest.raises(LampError, match="no VAE"):
        condition(node_classes, None, painting(), 128, 96, 2)


def test_sizes_are_checked_before_anything_runs(node_classes: Nodes) -> None:
    check = node_classes["LAMP_FirstFrameCondition"].validate_inputs
    assert check(width=512, height=320, frames=16) is True
    assert check(width=None, height=None, frames=None) is True  # the values come from links
    assert {"500", "496"} <= numbers(check(width=500, height=320, frames=16))
    assert check(width=0, height=0, frames=0, motion=None) is True  # a motion is linked
    assert "height" in check(width=512, height=0, frames=16)
    assert "frames" in check(width=512, height=320, frames=0)
    assert {"1", "2"} <= numbers(check(width=512, height=320, frames=1))
    # The host does not check the limits of inputs that the node validates.
    assert {"8000000", "8192"} <= numbers(check(width=8 * 10**6, height=320, frames=16))
    assert check(width=8192, height=8, frames=16) is True


def test_an_sdxl_vae_is_refused(node_classes: Nodes) -> None:
    from comfy.latent_formats import SDXL

    for seed in range(10):
        with pytest.raises(IncompatibleModelError, match="SD-XL.*SD 1.x"):
            condition(node_classes, vae_of(SDXL()), painting(seed=seed), 128, 96, 2)


@pytest.mark.parametrize("texture", [0.0, 0.2, 1.0])
def test_an_sd1_vae_is_never_taken_for_sdxl(node_classes: Nodes, texture: float) -> None:
    from comfy.latent_formats import SD15

    vae = vae_of(SD15(), texture)
    pictures = [painting(seed=seed) for seed in range(30)]
    grey = painting().mean(-1, keepdim=True).expand(-1, -1, -1, 3)
    for picture in [*pictures, grey, torch.zeros_like(grey), torch.rand_like(grey)]:
        condition(node_classes, vae, picture, 128, 96, 2)


def test_unknown_vaes_are_never_taken_for_sdxl(node_classes: Nodes) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 3.0, 5.0, 8.0):
        for _ in range(25):
            mixed = size * torch.randn(3, 4, generator=generator)
            noise = size * torch.randn(1, 4, 12, 16, generator=generator)
            linear = fake_vae(
                lambda picture, m=mixed: torch.einsum(
                    "bchw,ck->bkhw", F.avg_pool2d(picture.movedim(-1, 1) * 2 - 1, 8), m
                )
            )
            condition(node_classes, linear, painting(), 128, 96, 2)
            condition(node_classes, fake_vae(lambda _, n=noise: n), painting(), 128, 96, 2)


def test_a_grey_image_is_not_judged(comfy: Any) -> None:
    from comfy.latent_formats import SDXL

    from lamp.hosts.comfy.vae import is_sdxl_latent

    colourful, vae = painting(), vae_of(SDXL())
    grey = colourful.mean(-1, keepdim=True).expand(-1, -1, -1, 3)
    assert is_sdxl_latent(vae.encode(colourful), colourful)
    assert not is_sdxl_latent(vae.encode(grey), grey)
    half = F.avg_pool2d(colourful.movedim(-1, 1), 2).movedim(1, -1)
    assert not is_sdxl_latent(vae.encode(colourful), half)  # no 8x VAE


def motion_of(family: str) -> MotionFile:
    return MotionFile({}, MotionConfig(family=family))


@pytest.mark.parametrize(("family", "other"), [("sdxl", "SD15"), ("sd2", "SDXL"), ("sd1", "SDXL")])
def test_the_family_of_the_motion_decides_which_vae_fits(
    node_classes: Nodes, family: str, other: str
) -> None:
    import comfy.latent_formats

    right = {"SD15": "SDXL", "SDXL": "SD15"}[other]
    name = {"sdxl": "SD-XL", "sd2": "SD 2.x", "sd1": "SD 1.x"}[family]
    for seed in range(5):
        case = (painting(seed=seed), 128, 96, 2, "crop", motion_of(family))
        vae = vae_of(getattr(comfy.latent_formats, right)())
        assert condition(node_classes, vae, *case).shape == (2, 4, 12, 16)
        wrong = vae_of(getattr(comfy.latent_formats, other)())
        with pytest.raises(IncompatibleModelError, match=f"the {name} checkpoint"):
            condition(node_classes, wrong, *case)


def test_errors_name_the_family_of_the_motion(node_classes: Nodes) -> None:
    vae = fake_vae(shrink, latent_channels=16)
    with pytest.raises(IncompatibleModelError, match="16 .*SD-XL.* 4"):
        condition(node_classes, vae, painting(), 128, 96, 2, "crop", motion_of("sdxl"))


def test_zeros_are_filled_from_the_motion(node_classes: Nodes) -> None:
    config = MotionConfig("sd1", frames=5, width=64, height=48)
    motion = MotionFile({}, config, name="run.safetensors")
    node = node_classes["LAMP_FirstFrameCondition"]
    given = {"vae": fake_vae(shrink), "image": painting()}
    latent = node.execute(**given, width=0, height=0, frames=0, motion=motion).result[0]["samples"]
    assert latent.shape == (5, 4, 6, 8)
    latent = node.execute(**given, width=32, height=0, frames=3, motion=motion).result[0]["samples"]
    assert latent.shape == (3, 4, 6, 4)
    with pytest.raises(LampError, match="width.*motion"):
        node.execute(**given, width=0, height=48, frames=5)
    unknown = replace(motion, config=MotionConfig("sd1", frames=5))
    with pytest.raises(LampError, match=r"height.*run\.safetensors"):
        node.execute(**given, width=64, height=0, frames=5, motion=unknown)


def test_a_vae_of_another_stride_is_refused(node_classes: Nodes) -> None:
    """Stable Cascade's stage A has four channels, too, but one latent of 4 x 4 pixels."""
    import comfy.sd
    from comfy.ldm.cascade.stage_a import StageA

    state = StageA().state_dict().items()
    weights = {n: 0.05 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in state}
    with pytest.raises(LampError, match="4 x 4.*8 x 8"), torch.inference_mode():
        condition(node_classes, comfy.sd.VAE(sd=weights), torch.rand(1, 64, 64, 3), 64, 64, 2)
