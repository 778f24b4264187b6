"""Extreme settings: sizes, lengths, guidance, prompts, precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    SEED,
    conditioning,
    count_hooks,
    lamp_ksampler,
    moving,
    worst,
)
from benchmarks.samples.tiny_models import (
    reference,
    shallow_config,
    shallow_patcher,
    text,
    video_latent,
)
from lamp.errors import LampError
from lamp.method.adain import AdaINMode, AdaINSchedule
from lamp.method.layers import MotionConv, TemporalAttention
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.motion_file.file import MotionFile
from tests.helpers.small_models import hook_count

pytestmark = [pytest.mark.slow, pytest.mark.shallow]  # many of them

MODES: tuple[AdaINMode, ...] = ("paper", "official", "off", "custom")


@pytest.fixture(scope="module")
def expected(file: MotionFile) -> Callable[..., Tensor]:
    """The reference sampler on diffusers, in double precision."""
    host, motion = reference(file, shallow_config())
    host.unet.double()
    host.alphas_cumprod = host.alphas_cumprod.double()
    motion.double()

    def run(latent: Tensor, prompts: Any, *, steps: int, cfg: float, schedule: Any) -> Tensor:
        texts = [given[0][0].double() for given in prompts]
        # Attention to tokens that are all repeated is attention to the tokens.
        length = math.lcm(*(text.shape[1] for text in texts))
        positive, negative = (text.repeat(1, length // text.shape[1], 1) for text in texts)
        noise = share_noise(draw_noise(*latent.shape, SEED), 0.2).double()
        first = latent[:1].double() * 0.18215
        settings = {"steps": steps, "guidance": cfg, "schedule": schedule}
        return sample(host, motion, first, noise, positive, negative, **settings) / 0.18215

    return run


def sampled(
    plain: Any, file: MotionFile, expected: Any, latent: Tensor, prompts: Any = None, **options: Any
) -> None:
    """LAMP KSampler gives frame 1 as it is, and the other frames of the reference."""
    settings = {"steps": 2, "cfg": 5.0, "schedule": AdaINSchedule("off"), **options}
    with torch.inference_mode():
        out = lamp_ksampler(moving(plain, file), latent, **settings)
    assert out.shape == latent.shape and torch.equal(out[0], latent[0])
    wanted = expected(latent, prompts or conditioning(), **settings)
    assert worst(out.double()[1:], wanted[1:]) < 1e-3


@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(2, 8, 8), (3, 8, 12), (5, 20, 8), (17, 8, 8), (64, 8, 10)],
)
def test_lengths_and_shapes(
    plain: Any, file: MotionFile, expected: Any, frames: int, height: int, width: int
) -> None:
    schedule = AdaINSchedule("official")
    sampled(plain, file, expected, video_latent(frames, height, width), schedule=schedule)


@pytest.mark.parametrize(
    ("steps", "cfg", "mode"),
    [
        *((steps, cfg, mode) for steps in (1, 4) for cfg in (1.0, 30.0) for mode in MODES),
        (100, 1.0, "official"),
        (100, 30.0, "paper"),
    ],
)
def test_steps_and_guidance_under_every_schedule(
    plain: Any, file: MotionFile, expected: Any, steps: int, cfg: float, mode: AdaINMode
) -> None:
    schedule = AdaINSchedule(mode)
    sampled(plain, file, expected, video_latent(3), steps=steps, cfg=cfg, schedule=schedule)


@pytest.mark.parametrize("tokens", [1, 77, 1001])
def test_prompts_of_any_length(
    plain: Any, file: MotionFile, expected: Any, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """An empty prompt's one token at the least, the thirteen times 77 of 4,000 characters."""
    given = [[text(1, tokens), {}]], [[text(2, 77), {}]]
    monkeypatch.setattr("benchmarks.samples.comfy_runs.conditioning", lambda: given)
    sampled(plain, file, expected, video_latent(3), given)


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


@pytest.mark.parametrize(
    ("motion", "unet", "named"),
    [
        ("conv_in.conv1d.weight", "", r"motion 1\.conv_in"),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn_temp.to_v.weight",
            "",
            "motion 1.mid_block",
        ),
        ("", "middle_block.0.in_layers.2.weight", "MODEL.middle_block.0.in_layers.2"),
    ],
)
@torch.inference_mode()
def test_an_overflow_names_its_layer(
    comfy: Any, file: MotionFile, motion: str, unet: str, named: str
) -> None:
    plain = shallow_patcher()  # whose weights are spoilt here
    state = {**file.state}
    if motion:
        state[motion] = torch.full_like(state[motion], 3e38)
    else:
        plain.model.diffusion_model.state_dict()[unet].fill_(3e38)
    model = moving(plain, MotionFile(state, file.config, name="large.safetensors"))
    with pytest.raises(LampError, match=f"{named}.*torch.float32"):
        lamp_ksampler(model, video_latent(3), steps=2)
    assert count_hooks(plain) == 0 == hook_count(model.get_attachment("lamp_motion").motion)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_too_large_for_the_models_dtype_is_refused(
    plain: Any, file: MotionFile, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    from lamp.errors import MotionFileError
    from lamp.hosts.comfy.binding import load_motion

    name = next(name for name in file.state if name.endswith("conv1d.weight"))
    large = torch.full_like(file.state[name], 1e30 if dtype == torch.float16 else 3.4e38)
    extreme = MotionFile({**file.state, name: large}, file.config, name="large.safetensors")
    monkeypatch.setattr(plain.model, "manual_cast_dtype", dtype)
    with pytest.raises(MotionFileError, match=f"large.safetensors.*'{name}'.*{dtype}"):
        load_motion(plain, extreme)
    load_motion(plain, file)
