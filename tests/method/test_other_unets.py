"""A motion on UNets of SD 2.x and SD-XL: the same numbers on both hosts, trained and sampled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from lamp.clips.load import clips_from_images
from lamp.errors import IncompatibleModelError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import map_unet, pooled_width
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.method.schedule import scaled_linear_alphas
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion
from lamp.training.latents import LatentClips, cache_latents
from lamp.training.loop import predict_loss, train
from lamp.training.recipe import TrainConfig
from tests.helpers.other_unets import (
    FRAMES,
    KINDS,
    diffusers_of,
    drawn,
    is_xl,
    patcher_of,
    pooled_of,
    text_of,
)
from tests.helpers.small_models import random_motion

pytestmark = pytest.mark.slow  # many of them

SD_SCALE, XL_SCALE = 0.18215, 0.13025


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, comfy: ModuleType) -> str:
    return request.param


@pytest.fixture
def comfy_host(kind: str) -> Host:
    from lamp.hosts.comfy.training import ComfyHost

    return ComfyHost(patcher_of(kind))


def worst(seen: Tensor, expected: Tensor) -> float:
    return ((seen - expected).abs().max() / expected.abs().max()).item()


# --- forward ----------------------------------------------------------------------------------


@torch.no_grad()
def predicted(host: Host, kind: str, motion: Motion | None) -> Tensor:
    x, steps = drawn(1, 2 * FRAMES, 4, 8, 16), torch.tensor([40, 950])
    text = torch.cat([text_of(kind, 2), text_of(kind, 3)])
    if motion is None:
        return host.predict(x, steps, text)
    with motion.attached(host.unet, FrameLayout(FRAMES, 2)):
        return host.predict(x, steps, text)


def test_the_same_motion_gives_the_same_numbers_on_both_hosts(kind: str, comfy_host: Host) -> None:
    ours = diffusers_of(kind)
    motion = random_motion(ours.unet)
    theirs = random_motion(comfy_host.unet)
    theirs.load_state_dict(motion.state_dict())
    out = predicted(ours, kind, motion)
    assert worst(predicted(comfy_host, kind, theirs), out) < 2e-5
    assert worst(predicted(ours, kind, None), out) > 0.05  # the motion did act


def test_the_host_builds_its_own_class_of_model(kind: str) -> None:
    from comfy.model_sampling import V_PREDICTION

    patcher = patcher_of(kind)
    assert type(patcher.model).__name__ == ("SDXL" if is_xl(kind) else "BaseModel")
    assert patcher.model.latent_format.scale_factor == (XL_SCALE if is_xl(kind) else SD_SCALE)
    assert isinstance(patcher.model.model_sampling, V_PREDICTION) == KINDS[kind][1]
    assert map_unet(patcher.model.diffusion_model).family == kind.split()[0]


@torch.no_grad()
def test_sdxl_gets_the_pooled_prompt_of_each_video_and_the_size() -> None:
    host = diffusers_of("sdxl")
    x = drawn(1, 2 * FRAMES, 4, 8, 16)
    text = torch.cat([text_of("sdxl", 2), text_of("sdxl", 3)])
    out = host.predict(x, torch.tensor([40, 950]), text)
    for video in (0, 1):
        rows = slice(video * FRAMES, (video + 1) * FRAMES)
        expected = host.unet(
            x[rows],
            [40, 950][video],
            encoder_hidden_states=drawn(2 + video, 1, 7, 2048).expand(FRAMES, -1, -1),
            added_cond_kwargs={
                "text_embeds": pooled_of(2 + video).expand(FRAMES, -1),
                # height, width, cropped from above, from the left, height and width asked for
                "time_ids": torch.tensor([[64.0, 128, 0, 0, 64, 128]]).expand(FRAMES, -1),
            },
        ).sample
        assert worst(out[rows], expected) < 1e-5


def test_the_sites_of_sdxl_at_full_size() -> None:
    config = {
        **KINDS["sdxl"][0],
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684  # as published
    sites = map_unet(unet)
    assert (len(sites.convs), len(sites.blocks), len(sites.norms)) == (51, 70, 35)
    assert pooled_width(unet) == 1280
    trained = Motion(sites, device="meta").trained_parameters().values()
    assert sum(parameter.numel() for parameter in trained) == 630_134_539


# --- v ---------------------------------------------------------------------------------


def noisy_case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Latents, noise, timesteps, and what diffusers makes of them: x_t and the v."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise = drawn(5, 2 * FRAMES, 4, 8, 8), drawn(6, 2 * FRAMES, 4, 8, 8)
    steps = torch.tensor([60, 930])
    each = steps.repeat_interleave(FRAMES)
    x = scheduler.add_noise(latents, noise, each)
    return latents, noise, steps, x, scheduler.get_velocity(latents, noise, each)


class Says(torch.nn.Module):
    """A UNet that has one answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
        return (self.answer,)


def test_the_noise_is_recovered_from_a_v_prediction() -> None:
    _, noise, steps, x, v = noisy_case()
    host = DiffusersHost(Says(v), v_prediction=True)
    torch.testing.assert_close(host.predict(x, steps, torch.zeros(2, 1, 1)), noise)


@pytest.mark.parametrize("min_snr", [0.0, 5.0])
def test_the_loss_of_a_v_prediction_is_the_error_of_v(min_snr: float) -> None:
    latents, noise, steps, x, v = noisy_case()
    answer = v + drawn(7, *v.shape)
    host = DiffusersHost(Says(answer), v_prediction=True)
    errors = (answer - v).square().unflatten(0, (2, FRAMES))[:, 1:].flatten(1).mean(1)
    alpha = scaled_linear_alphas()[steps]
    snr = alpha / (1 - alpha)
    # Hang et al. 2023: min(snr, gamma) / (snr + 1) for v.
    weights = torch.ones(2) if not min_snr else snr.clamp(max=min_snr) / (snr + 1)
    loss = predict_loss(host, latents, noise, steps, torch.zeros(2, 1, 1), min_snr)
    assert loss.item() == pytest.approx((errors * weights).mean().item(), rel=1e-4)


# --- training and sampling --------------------------------------------------------------------


def latent_clips(kind: str) -> LatentClips:
    images = [drawn(seed, FRAMES + 1, 64, 64, 3).sigmoid() for seed in (1, 2)]
    scale = XL_SCALE if is_xl(kind) else SD_SCALE
    return cache_latents(
        clips_from_images(images, ["one", "two"], FRAMES, 64, 64),
        lambda pixels: (
            pixels[:, ::8, ::8].movedim(-1, 1).repeat(1, 2, 1, 1)[:, :4] / scale,
            torch.full((len(pixels), 4, 8, 8), 0.1),
        ),
        lambda texts: {text: text_of(kind, len(text)) for text in texts},
        scale=scale,
    )


def trained(host: Host, kind: str) -> tuple[Motion, list[float]]:
    motion = Motion(map_unet(host.unet)).initialise(0)
    config = TrainConfig(steps=3, frames=FRAMES, learning_rate=2e-3)
    return motion, train(host, motion, latent_clips(kind), config)


def test_both_hosts_train_alike_and_sample_alike(kind: str, comfy_host: Host) -> None:
    ours = diffusers_of(kind)
    motion, losses = trained(ours, kind)
    theirs, seen = trained(comfy_host, kind)
    assert seen == pytest.approx(losses, rel=1e-4)
    assert losses[0] != losses[-1]
    # AdamW makes whole steps of gradients that are hardly more than rounding, so the parameters
    # part; a motion itself moves from one host to the other.
    theirs.load_state_dict(motion.state_dict())
    video = lamp_sample(ours, motion, kind)
    assert worst(lamp_sample(comfy_host, theirs, kind), video) < 1e-4
    still = lamp_sample(ours, Motion(map_unet(ours.unet)).initialise(0), kind)
    assert worst(still, video) > 1e-2


def test_both_hosts_have_the_same_gradients(
    kind: str, comfy_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In double precision up to the loss: in single, sums that all but cancel are mostly rounding.
    latents, noise, steps = noisy_case()[:3]
    text = torch.cat([text_of(kind, 2), text_of(kind, 3)]).double()
    motion = random_motion(comfy_host.unet)
    monkeypatch.setattr(comfy_host, "dtype", torch.float64)
    gradients = []
    for host in (comfy_host, diffusers_of(kind)):
        host.unet.double()
        theirs = Motion(map_unet(host.unet)).double()
        theirs.load_state_dict(motion.state_dict())
        with theirs.attached(host.unet, FrameLayout(FRAMES, 2)):
            predict_loss(host, latents.double(), noise, steps, text).backward()
        host.unet.float()
        gradients.append({name: p.grad for name, p in theirs.trained_parameters().items()})
    largest = max(gradient.abs().max().item() for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        # Before a GroupNorm of single channels a bias has no gradient.
        scale = max(gradient.abs().max().item(), 1e-4 * largest)
        assert (gradients[0][name] - gradient).abs().max() < 1e-3 * scale, name


def lamp_sample(host: Host, motion: Motion, kind: str) -> Tensor:
    return sample(
        host,
        motion,
        drawn(3, 1, 4, 8, 8),
        share_noise(draw_noise(FRAMES, 4, 8, 8, 7)),
        text_of(kind, 1),
        text_of(kind, 2),
        steps=6,
        guidance=5.0,
        schedule=AdaINSchedule("paper"),
    )


def test_the_clips_latents_have_the_models_scale() -> None:
    clips = latent_clips("sdxl")
    assert clips.scale == XL_SCALE
    window = clips.clips.sample_window(torch.Generator().manual_seed(0), 0)
    posterior = clips.posteriors[0]
    drawn_here = posterior.sample(slice(0, FRAMES), torch.Generator().manual_seed(1), 1.0)
    window = dataclasses.replace(window, start=0, flipped=False)
    seen = clips.draw(window, torch.Generator().manual_seed(1))
    torch.testing.assert_close(seen, drawn_here * XL_SCALE)


def test_comfyuis_own_sampling_equals_the_reference(kind: str) -> None:
    """The whole of ComfyUI's loop with its own conditioning against ours on diffusers."""
    from lamp.hosts.comfy.binding import BoundMotion, bind, load_motion
    from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, sample_video

    ours, patcher = diffusers_of(kind), patcher_of(kind)
    motion = random_motion(ours.unet)
    file = MotionFile(motion.state_dict(), MotionConfig(family=kind.split()[0]))
    latent = torch.zeros(FRAMES, 4, 8, 8)
    scale = XL_SCALE if is_xl(kind) else SD_SCALE
    latent[0] = drawn(3, 4, 8, 8) / scale

    def conditioning(seed: int) -> Any:
        about = {"pooled_output": pooled_of(seed)} if is_xl(kind) else {}
        return [[drawn(seed, 1, 7, KINDS[kind][0]["cross_attention_dim"]), about]]

    with torch.inference_mode():
        model = bind(patcher, BoundMotion(load_motion(patcher, file)))
        out = sample_video(
            model,
            conditioning(1),
            conditioning(2),
            {"samples": latent},
            seed=7,
            steps=6,
            cfg=5.0,
            sampler="ddim",
            scheduler=OFFICIAL_SCHEDULER,
            schedule=AdaINSchedule("paper"),
        )["samples"]
    assert worst(out * scale, lamp_sample(ours, motion, kind)) < 1e-4


def test_a_prompt_of_sdxl_changes_what_is_sampled_by_its_pooled_embedding() -> None:
    host = diffusers_of("sdxl")
    motion = random_motion(host.unet)
    text = text_of("sdxl", 1)
    other = text.clone()
    other[..., 2048:] += 1.0
    x, step = drawn(1, FRAMES, 4, 8, 8), torch.tensor([500])
    with torch.no_grad(), motion.attached(host.unet, FrameLayout(FRAMES)):
        out = host.predict(x, step, text)
        assert worst(host.predict(x, step, other), out) > 1e-3


def test_the_memory_of_a_run_is_estimated_first(comfy: ModuleType) -> None:
    from lamp.hosts.comfy.memory import ShadowHost
    from lamp.hosts.comfy.training import ComfyHost
    from lamp.hosts.diffusers.unet import shadow_host
    from lamp.training.memory.plan import plan_memory

    host = ComfyHost(patcher_of("sdxl"))
    cases = [
        (host.unet, lambda unet: ShadowHost(host, unet)),
        (diffusers_of("sdxl").unet, shadow_host),
    ]
    clips, config = latent_clips("sdxl"), TrainConfig(steps=3, frames=FRAMES)
    for unet, shadow in cases:
        said: list[str] = []
        plan_memory(unet, clips, config, "off", torch.device("cpu"), 2**36, said.append, shadow)
        weights = round(sum(p.nbytes for p in unet.parameters()) / 2**20)
        assert f"{weights} MB" in said[0]


# --- what does not fit ------------------------------------------------------------------------


def motion_for(family: str) -> MotionFile:
    return MotionFile({}, MotionConfig(family=family), name="run.safetensors")


@pytest.mark.parametrize(
    ("motion", "connected", "words"),
    [
        ("sd1", "sdxl", "SD 1.x.*SD-XL"),
        ("sd2", "sdxl", "SD 2.x.*SD-XL"),
        ("sd1", "sd2", "SD 1.x.*SD 2.x"),
        ("sdxl", "sd2", "SD-XL.*SD 2.x"),
    ],
)
def test_families_are_not_mixed(motion: str, connected: str, words: str) -> None:
    sites = map_unet(diffusers_of(connected).unet)
    with pytest.raises(IncompatibleModelError, match=words):
        motion_for(motion).check_against(sites)


@pytest.mark.parametrize("motion", ["sd2", "sdxl"])
def test_the_motion_of_another_family_is_refused_by_sd_1(motion: str) -> None:
    from tests.helpers.small_models import CONFIG, random_state

    config = {**CONFIG, "cross_attention_dim": 768}
    from lamp.hosts.diffusers.unet import build_host

    sites = map_unet(build_host(config, random_state(0, config)).unet)
    name = {"sd2": "SD 2.x", "sdxl": "SD-XL"}[motion]
    with pytest.raises(IncompatibleModelError, match=f"{name}.*SD 1.x.*{name}"):
        motion_for(motion).check_against(sites)


def test_the_file_names_the_family(kind: str, tmp_path: Path) -> None:
    unet = diffusers_of(kind).unet
    family = kind.split()[0]
    motion = random_motion(unet)
    path = save_motion(
        tmp_path / "a.safetensors",
        motion.state_dict(),
        MotionConfig(family=map_unet(unet).family),
        dtype=torch.float32,
    )
    file = load_motion_file(path)
    assert file.config.family == family
    version = {"sd2": "v2-768-v", "sdxl": "xl-v1-base"}[family]
    expected = f"stable-diffusion-{version}/lamp-motion"
    assert file.metadata["modelspec.architecture"] == expected
    file.check_against(map_unet(unet))
    for name, tensor in motion.state_dict().items():
        assert torch.equal(file.state[name], tensor)
