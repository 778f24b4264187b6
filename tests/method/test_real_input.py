"""Real clips and first frames through a UNet of the full SD 1.x width (its weights are random)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from lamp.clips.images import fit_images
from lamp.clips.load import load_clips
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import map_unet
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.training.latents import SCALE, cache_latents
from lamp.training.loop import train
from lamp.training.recipe import TrainConfig

SIZE = 64  # pixels; the network has its full width, which is what may overflow
FRAMES = 16


@pytest.fixture(scope="module")
def host() -> DiffusersHost:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return DiffusersHost(unet.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    return vae.eval().requires_grad_(False)


def posterior(vae: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    found = vae.encode(frames.movedim(-1, 1) * 2 - 1).latent_dist
    return found.mean, found.std


@pytest.mark.slow
@pytest.mark.timeout(900)  # a UNet of 860 million parameters on whatever CPU there is
@pytest.mark.parametrize(("folder", "clips"), [("ride_a_bicycle", 4), ("horse_run", 3)])
def test_real_clips_train_and_a_real_frame_stays_frame_1(
    shared_dir: Path, host: DiffusersHost, vae: Any, folder: str, clips: int
) -> None:
    read = load_clips(
        shared_dir / "data/clips" / folder, "", FRAMES, SIZE, SIZE, short="loop", max_frames=24
    )
    assert len(read) == clips
    assert read.captions[0] == folder.replace("_", " ")
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(2))
    latents = cache_latents(read, lambda f: posterior(vae, f), lambda p: dict.fromkeys(p, text))
    motion = Motion(map_unet(host.unet)).initialise(0)
    losses = train(host, motion, latents, TrainConfig(steps=2, frames=FRAMES))
    assert all(torch.isfinite(torch.tensor(losses)))
    for name, tensor in motion.state_dict().items():
        assert torch.isfinite(tensor).all(), name

    picture = sorted((shared_dir / "data/first_frames/horse_run").glob("*.png"))[0]
    image = pil_to_tensor(Image.open(picture).convert("RGB")).movedim(0, -1)[None] / 255
    first = posterior(vae, fit_images(image, SIZE, SIZE))[0] * SCALE
    noise = share_noise(draw_noise(FRAMES, 4, SIZE // 8, SIZE // 8, seed=3))
    video = sample(
        host, motion, first, noise, text, steps=2, guidance=1.0, schedule=AdaINSchedule()
    )
    assert torch.isfinite(video).all()
    assert torch.equal(video[:1], first)
    assert not torch.equal(video[1], video[2])
