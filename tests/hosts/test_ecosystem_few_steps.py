"""LCM and its like: few steps, little guidance, a LoRA and noise levels of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import SEED, advanced, conditioning, lamp_ksampler, moving, worst
from benchmarks.samples.ecosystem import FRAMES, Patch, sample
from benchmarks.samples.tiny_models import video_latent
from benchmarks.samples.tiny_patches import lora_state
from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
SD_LEVELS = (1 / (1 - BETAS).cumprod(0) - 1).sqrt()
LCM = Patch("model_advanced", "ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False})
EDM_LEVELS = {"sampling": "eps", "sigma_max": 120.0, "sigma_min": 0.002}
EDM = Patch("model_advanced", "ModelSamplingContinuousEDM", EDM_LEVELS)


@pytest.fixture
def fast(plain: Any, request: pytest.FixtureRequest) -> Any:
    """A few-step LoRA from a file, by the host's loader for models alone."""
    import folder_paths
    from safetensors.torch import save_file

    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fast.safetensors"
    save_file(lora_state(plain), path)
    request.addfinalizer(path.unlink)
    inputs = {"lora_name": path.name, "strength_model": 0.7}
    return Patch("nodes", "LoraLoaderModelOnly", inputs)


# --- LoRA -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "cfg"), [(4, 1.0), (8, 2.0)])
def test_a_few_step_lora_with_lcm(
    plain: Any, file: MotionFile, fast: Patch, steps: int, cfg: float
) -> None:
    def run(model: Any) -> Tensor:
        return sample(model, "lcm", "sgm_uniform", steps=steps, cfg=cfg)

    model = moving(plain, file)
    after = run(LCM(fast(model)))
    assert torch.equal(after, run(moving(LCM(fast(plain)), file)))
    assert torch.equal(after, run(fast(moving(LCM(plain), file))))
    assert torch.equal(after[0], video_latent()[0]) and after.isfinite().all()
    assert worst(run(LCM(model)), after) > 1e-3  # the LoRA acts
    assert worst(run(fast(model)), after) > 1e-3  # so do the noise levels
    assert worst(run(LCM(fast(moving(plain, file, strength=0.0)))), after) > 1e-3  # and the motion
    assert torch.equal(run(LCM(fast(model))), after)


# --- AdaIN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(4, 9))
def test_the_switch_is_a_share_of_the_steps(steps: int) -> None:
    """t > 20 of 50, t from 49 to 0, is 29 steps of 50."""
    paper = [AdaINSchedule("paper").in_first_phase(step, steps) for step in range(steps)]
    assert sorted(paper, reverse=True) == paper
    assert abs(sum(paper) / steps - 29 / 50) < 1 / steps and 0 < sum(paper) < steps
    for switch in (0.0, 0.25, 0.5, 1.0):
        chosen = AdaINSchedule("custom", switch=switch)
        first = [chosen.in_first_phase(step, steps) for step in range(steps)]
        assert abs(sum(first) - switch * steps) <= 0.5


def by_statistics(video: Tensor, leader: int) -> Tensor:
    """Frames after number `leader` with its mean and deviation (supplement alg. 1)."""
    out = video.clone()
    for frame in range(leader, len(video)):
        for channel in range(video.shape[1]):
            x, like = video[frame, channel], video[leader - 1, channel]
            scale = like.var().add(1e-8).sqrt() / x.var().add(1e-8).sqrt()
            out[frame, channel] = (x - x.mean()) * scale + like.mean()
    return out


@pytest.mark.parametrize("steps", [4, 6, 8])
def test_adain_in_few_lcm_steps_by_the_formula(
    plain: Any, file: MotionFile, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """x <- denoised + sigma n, then AdaIN on x / sqrt(1 + sigma^2) beside the clean frame 1."""
    from comfy.k_diffusion.sampling import default_noise_sampler

    from lamp.hosts.comfy import sampler as comfy_sampler
    from lamp.hosts.comfy.sampler import make_sigmas

    predicted: list[Tensor] = []
    states: list[Tensor] = []

    def record(*_: Any, **__: Any) -> Any:
        def see(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            predicted.append(x0.clone())
            states.append(x.clone())

        return see

    monkeypatch.setattr(comfy_sampler, "show_middle_frame", record)
    model, latent = LCM(moving(plain, file)), video_latent(FRAMES)
    options = {"sampler": "lcm", "scheduler": "sgm_uniform", "steps": steps, "cfg": 1.5}
    out = lamp_ksampler(model, latent, schedule=AdaINSchedule("paper"), **options)

    first = model.model.process_latent_in(latent)[:1]
    sigmas = make_sigmas(model, "sgm_uniform", steps)
    draw = default_noise_sampler(states[0], seed=SEED)
    for step, sigma in enumerate(sigmas[1:]):
        x = predicted[step]
        if sigma > 0:
            x = x + sigma * draw(sigmas[step], sigma)
        scale = (1 + sigma**2).sqrt()
        # t > 20 of 50 is timestep 421 and above: the level of the step decides, not its number.
        leader = 2 if SD_LEVELS.sub(sigmas[step]).abs().argmin() > 401 else 1
        video = by_statistics(torch.cat([first, x[1:] / scale]), leader)
        x = torch.cat([x[:1], video[1:] * scale])
        if step + 1 < steps:
            assert worst(states[step + 1][1:], x[1:]) < 1e-5
        else:
            assert worst(out[1:], model.model.process_latent_out(x)[1:]) < 1e-5
    assert len(states) == steps


# --- noise levels ---------------------------------------------------------------------------------


def test_the_official_levels_are_refused_for_lcm_by_name(plain: Any, file: MotionFile) -> None:
    from lamp.hosts.comfy.inversion import invert_video

    model, video = LCM(moving(plain, file)), torch.randn(FRAMES, 4, 8, 8)
    named = "1000.*50.*sgm_uniform"
    with pytest.raises(LampError, match=named):
        lamp_ksampler(model, video_latent(FRAMES))
    with pytest.raises(LampError, match=named):
        invert_video(model, conditioning()[0], {"samples": video}, steps=4)


def test_a_part_of_a_schedule_of_lcm(plain: Any, file: MotionFile) -> None:
    """With LAMP Sampler, whose official schedule begins in a way of its own."""
    from lamp.hosts.comfy.sampler import make_sampler, make_sigmas

    model = LCM(moving(plain, file))
    high = make_sigmas(model, "sgm_uniform", 4)[:3]
    out = advanced(model, make_sampler("lcm", AdaINSchedule("paper")), high, cfg=1.0)
    assert torch.equal(out[0], video_latent()[0]) and out.isfinite().all()


def test_percentages_are_those_of_the_levels_in_force(plain: Any, file: MotionFile) -> None:
    """Whether the node that sets the noise levels stands before the motion or behind it."""
    late = {"start_percent": 0.3, "end_percent": 0.7}
    run = {"scheduler": "karras", "steps": 5}
    behind, before = EDM(moving(plain, file, **late)), moving(EDM(plain), file, **late)
    assert torch.equal(sample(behind, **run), sample(before, **run))
    whole = sample(EDM(moving(plain, file)), **run)
    still = sample(EDM(moving(plain, file, strength=0.0)), **run)
    assert worst(sample(behind, **run), whole) > 1e-3 < worst(sample(behind, **run), still)
