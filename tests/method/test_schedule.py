"""The noise schedule against diffusers' DDIMScheduler with the official settings."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from lamp.errors import LampError
from lamp.method.schedule import (
    add_noise,
    ddim_step,
    ddim_timesteps,
    next_alpha,
    scaled_linear_alphas,
    shift_timesteps,
)

STEPS = [1, 10, 37, 50, 1000]


def official(steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def test_alphas() -> None:
    assert torch.equal(scaled_linear_alphas(), official(50).alphas_cumprod)


@pytest.mark.parametrize("steps", [step for step in STEPS if step < 1000])
def test_timesteps(steps: int) -> None:
    assert ddim_timesteps(steps) == official(steps).timesteps.tolist()


def test_the_usual_timesteps() -> None:
    assert ddim_timesteps(50)[:2] == [981, 961]
    assert ddim_timesteps(50)[-1] == 1


def test_no_timestep_lies_outside_the_schedule() -> None:
    """Offset 1 would make the first of 1000 steps number 1000, which does not exist."""
    timesteps = ddim_timesteps(1000)
    assert timesteps[0] == 999
    assert min(timesteps) >= 0


@pytest.mark.parametrize("steps", [10, 37, 50])
def test_every_step(steps: int) -> None:
    scheduler, alphas = official(steps), scaled_linear_alphas()
    generator = torch.Generator().manual_seed(steps)
    for timestep in ddim_timesteps(steps):
        x, eps = torch.randn(2, 3, 4, 8, 8, generator=generator)
        expected = scheduler.step(eps, timestep, x, eta=0.0).prev_sample
        ours = ddim_step(x, eps, alphas[timestep], next_alpha(alphas, timestep, steps))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_step_and_its_inverse() -> None:
    x, eps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alphas = scaled_linear_alphas().double()
    there = ddim_step(x.double(), eps.double(), alphas[981], alphas[961])
    back = ddim_step(there, eps.double(), alphas[961], alphas[981])
    torch.testing.assert_close(back, x.double())


def test_noise_is_added_as_the_scheduler_does() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    alpha = scaled_linear_alphas()[timesteps][:, None, None, None]
    expected = official(50).add_noise(x0, noise, timesteps)
    torch.testing.assert_close(add_noise(x0, noise, alpha), expected)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_an_invalid_number_of_steps_is_refused(steps: int) -> None:
    with pytest.raises(LampError, match=f"steps.*{steps}.*1000"):
        ddim_timesteps(steps)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_timesteps_are_shifted_as_in_flow_matching(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    wanted = (scheduler.sigmas * 1000).flip(0)[:1000].float()  # of 1 to 1000
    found = shift_timesteps(torch.arange(1000), shift)
    assert 0 <= found.min() and found.max() <= 999
    # Half a timestep lies between the two, and rounding down takes up to one more.
    assert (found - wanted).abs().max() <= 1 + max(shift, 1 / shift)
    assert torch.equal(shift_timesteps(torch.arange(1000), 1.0), torch.arange(1000))
