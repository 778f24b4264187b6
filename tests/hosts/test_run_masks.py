"""Masks of the latent and of a motion: what they protect and hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    SEED,
    STEPS,
    advanced,
    conditioning,
    core,
    ksampler,
    lamp_ksampler,
    levels,
    moving,
    sampler,
    worst,
)
from benchmarks.samples.tiny_models import video_latent
from lamp.method.adain import AdaINSchedule
from lamp.method.masks import MotionMask
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]


@pytest.fixture(scope="module")
def model(plain: Any, file: MotionFile) -> Any:
    return moving(plain, file)


# --- masks on the latent --------------------------------------------------------------------------


def soft_mask() -> Tensor:
    return torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def differential(model: Any) -> Any:
    """The MODEL under Differential Diffusion, by the host's node."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    return core(DifferentialDiffusion, model)[0]


@pytest.mark.parametrize("patch", [lambda m: m, differential], ids=["plain", "differential"])
@pytest.mark.parametrize("frames", ["filled", "empty"])
def test_a_soft_mask_is_applied_once_as_by_the_stock_sampler(
    model: Any, patch: Any, frames: str
) -> None:
    full = video_latent()
    if frames == "filled":
        full[1:] = torch.randn(full[1:].shape, generator=torch.Generator().manual_seed(6))
    chosen, mask = patch(model), {"noise_mask": soft_mask()}
    for name in ("euler", "dpmpp_2m"):
        ours, stock = (
            advanced(chosen, sampler(name, mode), levels(model), latent=full, **mask)
            for mode in ("off", None)
        )
        assert torch.equal(ours, stock)


@pytest.mark.parametrize("mode", ["off", "paper", "official"])
@pytest.mark.parametrize("scheduler", ["normal", "ddim (official)"])
def test_what_a_mask_protects_stays_under_adain(model: Any, scheduler: str, mode: Any) -> None:
    full = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 4:] = 0.0
    sigmas = levels(model, scheduler)
    out = advanced(model, sampler("euler", mode), sigmas, latent=full, noise_mask=mask)
    assert worst(out[..., 4:], full[..., 4:]) < 1e-5
    assert worst(out[1:, :, :, :4], full[1:, :, :, :4]) > 0.1


@pytest.mark.parametrize("ours", [False, True])
def test_a_mask_on_empty_frames_protects_frame_1s_picture(model: Any, ours: bool) -> None:
    mask = torch.ones(1, 64, 64)
    mask[..., 32:] = 0.0
    latent = {"samples": video_latent(), "noise_mask": mask}
    if ours:
        from lamp.hosts.comfy.sampler import sample_video

        out = sample_video(
            model,
            *conditioning(),
            latent,
            seed=SEED,
            steps=STEPS,
            cfg=5.0,
            sampler="ddim",
            scheduler="ddim (official)",
            schedule=AdaINSchedule("paper"),
        )["samples"]
    else:
        out = ksampler(model, **latent)
    first = latent["samples"][:1]
    assert worst(out[..., 4:], first[..., 4:].expand(6, -1, -1, -1)) < 1e-5
    assert worst(out[1:, ..., :4], first[..., :4].expand(5, -1, -1, -1)) > 0.05


# --- what is held by a motion's mask --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "paper", "official"])
@pytest.mark.parametrize("scheduler", ["ddim (official)", "normal", "karras"])
def test_a_held_picture_is_frame_1_with_every_schedule(
    plain: Any, file: MotionFile, scheduler: str, mode: Any
) -> None:
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1.0
    still = moving(plain, file, motion_mask=MotionMask(mask, hold=1.0))
    out = lamp_ksampler(still, scheduler=scheduler, schedule=AdaINSchedule(mode))
    stock = advanced(still, sampler(), levels(still, scheduler))
    for video in (out, stock):
        assert worst(video[1:, ..., 5:], video[:1, ..., 5:].expand(5, -1, -1, -1)) < 1e-5
        assert worst(video[1:, ..., :3], video[:1, ..., :3].expand(5, -1, -1, -1)) > 0.05


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
def test_a_held_picture_is_frame_1_with_unipc(plain: Any, file: MotionFile, name: str) -> None:
    """UniPC writes into the noise levels that it is given."""
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1.0
    out = ksampler(moving(plain, file, motion_mask=MotionMask(mask)), sampler=name)
    assert worst(out[1:, ..., 5:], out[:1, ..., 5:].expand(5, -1, -1, -1)) < 1e-6


def test_what_the_latents_mask_protects_is_not_held_to_frame_1(
    plain: Any, file: MotionFile
) -> None:
    """A motion's mask holds what the latent's leaves free."""
    full = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    free, moves = torch.ones(1, 64, 64), torch.zeros(64, 64)
    free[..., 48:] = 0.0
    moves[:, :16] = 1.0
    model = moving(plain, file, motion_mask=MotionMask(moves))
    for mode in (None, "paper"):
        given = {"latent": full, "noise_mask": free}
        out = advanced(model, sampler("euler", mode), levels(model), **given)
        assert worst(out[..., 6:], full[..., 6:]) < 1e-5
        assert worst(out[1:, ..., 3:5], full[:1, ..., 3:5].expand(5, -1, -1, -1)) < 1e-5
        assert worst(out[1:, ..., :2], full[:1, ..., :2].expand(5, -1, -1, -1)) > 0.05


@pytest.mark.parametrize("scheduler", ["normal", "karras"])
@pytest.mark.parametrize(
    ("patch", "protected", "share"),
    [(lambda m: m, 0.5, 0.5), (lambda m: m, 0.25, 0.25), (differential, 0.0, 0.0)],
    ids=["half", "a quarter", "differential"],
)
def test_a_held_picture_mixes_once_with_what_a_soft_mask_keeps(
    plain: Any, file: MotionFile, patch: Any, protected: float, share: float, scheduler: str
) -> None:
    """A share of frame 1, and the rest of the latent; none under Differential Diffusion, whose last
    step frees the whole picture."""
    full = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    free, moves = torch.ones(1, 64, 64), torch.zeros(64, 64)
    free[..., 32:] = protected
    moves[:, :16] = 1.0
    model = patch(moving(plain, file, motion_mask=MotionMask(moves)))
    out = advanced(model, sampler(), levels(model, scheduler), latent=full, noise_mask=free)
    expected = torch.lerp(full, full[:1], share)
    assert worst(out[1:, ..., 5:], expected[1:, ..., 5:]) < 1e-4
