"""Numbers at the edges of what people choose: sizes, lengths, guidance, prompts, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lamp.adain import AdaINMode, AdaINSchedule
from lamp.checkpoint import MotionFile
from lamp.layers import MotionConv, TemporalAttention
from tests.comfy_runs import lamp_ksampler, moving
from tests.tiny_models import text, video_latent

MODES: tuple[AdaINMode, ...] = ("paper", "official", "off", "custom")
slow = pytest.mark.slow


def sound(out: Tensor, latent: Tensor) -> None:
    assert out.shape == latent.shape and out.isfinite().all()
    assert torch.equal(out[0], latent[0])


@torch.inference_mode()
def sampled(plain: Any, file: MotionFile, latent: Tensor, **options: Any) -> None:
    sound(lamp_ksampler(moving(plain, file), latent, **{"steps": 2, **options}), latent)


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(2, 8, 8), (3, 8, 12), (5, 20, 8), (17, 8, 8), pytest.param(128, 8, 10, marks=slow)],
)
def test_lengths_and_shapes(
    plain: Any, file: MotionFile, frames: int, height: int, width: int
) -> None:
    schedule = AdaINSchedule("official")
    sampled(plain, file, video_latent(frames, height, width), schedule=schedule)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cfg", [1.0, 30.0])
@pytest.mark.parametrize("steps", [1, 4, *(pytest.param(n, marks=slow) for n in (33, 100))])
def test_steps_and_guidance_under_every_schedule(
    plain: Any, file: MotionFile, steps: int, cfg: float, mode: AdaINMode
) -> None:
    schedule = AdaINSchedule(mode)
    sampled(plain, file, video_latent(3), steps=steps, cfg=cfg, schedule=schedule)


@pytest.mark.parametrize("tokens", [1, 77, 1001])
def test_prompts_of_any_length(
    plain: Any, file: MotionFile, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """An empty prompt's one token at the least, the thirteen times 77 of 4,000 characters."""
    given = [[text(1, tokens), {}]], [[text(2, 77), {}]]
    monkeypatch.setattr("tests.comfy_runs.conditioning", lambda: given)
    sampled(plain, file, video_latent(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
def test_layers_in_half_precision_stay_near_those_in_full(dtype: torch.dtype, size: float) -> None:
    """Activations up to 400, as SD's are at the most; the error is that of the inputs' rounding."""
    generator = torch.Generator().manual_seed(0)
    for layer, shape in ((MotionConv(8), (6, 8, 6, 6)), (TemporalAttention(8, 2), (6, 9, 8))):
        layer.requires_grad_(False)
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        x = (torch.randn(shape, generator=generator) * size).to(dtype)
        exact = layer.double()(x.double(), 3)
        out = layer.to(dtype)(x, 3)
        assert out.dtype == dtype and out.isfinite().all()
        error = (out.double() - exact).abs().max() / exact.abs().max()
        assert error < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_too_large_for_the_models_precision_is_named(
    plain: Any, file: MotionFile, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    from lamp.errors import MotionFileError
    from lamp.hosts.comfy import load_motion

    name = next(name for name in file.state if name.endswith("conv1d.weight"))
    large = torch.full_like(file.state[name], 1e30 if dtype == torch.float16 else 3.4e38)
    extreme = MotionFile({**file.state, name: large}, file.config, name="large.safetensors")
    monkeypatch.setattr(plain.model, "manual_cast_dtype", dtype)
    with pytest.raises(MotionFileError, match=f"large.safetensors: '{name}' .*{dtype}"):
        load_motion(plain, extreme)
    load_motion(plain, file)
