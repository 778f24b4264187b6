"""Motion guidance on both hosts, against the formula written out with separate predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.masks import MotionMask
from lamp.method.motion import Motion
from lamp.method.motion_guidance import unconditional_scale
from lamp.method.sampling import predict_guided, sample
from lamp.method.windows import Windows
from tests.helpers.small_models import TEXT_WIDTH, random_motion

FRAMES, VIDEOS = 4, 2


@pytest.fixture
def motion(host: Host) -> Motion:
    return random_motion(host.unet)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(VIDEOS * FRAMES, 4, 16, 8, generator=generator)
    cond, uncond = torch.randn(2, VIDEOS, 7, TEXT_WIDTH, generator=generator)
    return x, cond, uncond


@torch.no_grad()
def eps(host: Host, motion: Motion, text: Tensor, strength: float) -> Tensor:
    """One prediction of all videos with one prompt, at one strength of the motion."""
    x = inputs()[0]
    with motion.attached(host.unet, FrameLayout(FRAMES, VIDEOS), strength=strength):
        return host.predict(x, torch.full((VIDEOS,), 600), text)


@torch.no_grad()
def guided(host: Host, motion: Motion, guidance: float, scale: float) -> Tensor:
    x, cond, uncond = inputs()
    halves = 1 if guidance == 1 else 2
    layout = FrameLayout(FRAMES, VIDEOS * halves)
    other = uncond if halves == 2 else None
    with motion.attached(host.unet, layout):
        out = predict_guided(host, x, 600, cond, other, guidance, layout, scale)
    assert layout.motion_scales is None
    return out


@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_without_a_negative_prompt_it_extrapolates_from_strength_zero(
    host: Host, motion: Motion, scale: float
) -> None:
    cond = inputs()[1]
    on, off = (eps(host, motion, cond, strength) for strength in (1.0, 0.0))
    torch.testing.assert_close(
        guided(host, motion, 1.0, scale), off + scale * (on - off), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "scale", "share"), [(5, 2, 0.75), (2, 2, 0), (3, 1.5, 0.75)])
def test_with_a_negative_prompt_its_half_gets_less_of_the_motion(
    host: Host, motion: Motion, guidance: float, scale: float, share: float
) -> None:
    _, cond, uncond = inputs()
    base, conditioned = eps(host, motion, uncond, share), eps(host, motion, cond, 1.0)
    expected = base + guidance * (conditioned - base)
    torch.testing.assert_close(
        guided(host, motion, guidance, scale), expected, rtol=1e-4, atol=1e-4
    )


def test_more_than_the_guidance_of_the_prompt_takes_further_predictions(
    host: Host, motion: Motion
) -> None:
    def combined(strength: float) -> Tensor:
        base, conditioned = (eps(host, motion, text, strength) for text in inputs()[:0:-1])
        return base + 1.5 * (conditioned - base)

    off, on = combined(0.0), combined(1.0)
    torch.testing.assert_close(
        guided(host, motion, 1.5, 4.0), off + 4 * (on - off), rtol=1e-4, atol=1e-4
    )


def test_the_share_keeps_the_weight_of_the_motion() -> None:
    """Guidance s on the prompt weighs a part that both halves share by 1, and one of the prompt
    alone by s."""
    for guidance, scale in [(12.5, 2.0), (2.0, 1.2), (7.0, 7.0)]:
        share = unconditional_scale(guidance, scale)
        assert share is not None and 0 <= share <= 1
        assert share + guidance * (1 - share) == pytest.approx(scale)
    assert unconditional_scale(1.0, 2.0) is None and unconditional_scale(1.5, 2.0) is None


def draw(host: Host, motion: Motion, **how: Any) -> Tensor:
    x, cond, uncond = inputs()
    settings: dict[str, Any] = {
        "guidance": 4.0, "steps": 3, "schedule": AdaINSchedule("paper"), **how
    }  # fmt: skip
    return sample(host, motion, x[:VIDEOS], x, cond, uncond, **settings)


def test_scale_one_changes_no_bit(host: Host, motion: Motion) -> None:
    assert torch.equal(draw(host, motion, motion_guidance=1.0), draw(host, motion))
    assert not torch.allclose(draw(host, motion, motion_guidance=2.0), draw(host, motion))


@pytest.mark.slow
def test_a_motion_that_adds_nothing_has_nothing_to_guide(host: Host) -> None:
    from lamp.method.architecture import map_unet

    fresh = Motion(map_unet(host.unet)).initialise()
    for guidance in (1.0, 4.0):
        plain = draw(host, fresh, guidance=guidance)
        ours = draw(host, fresh, guidance=guidance, motion_guidance=2.0)
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_masks_and_windows_keep_their_part(host: Host, motion: Motion) -> None:
    closed = MotionMask(torch.zeros(8, 8), hold=1.0)
    first = inputs()[0][:VIDEOS]
    video = draw(host, motion, motion_guidance=2.0, motion_mask=closed).unflatten(0, (VIDEOS, -1))
    torch.testing.assert_close(video, first[:, None].expand_as(video), rtol=1e-4, atol=1e-4)
    whole = draw(host, motion, motion_guidance=2.0, windows=Windows(FRAMES, 1))
    assert torch.equal(whole, draw(host, motion, motion_guidance=2.0))


@pytest.mark.parametrize("scale", [0.5, -1.0, float("nan"), float("inf")])
def test_a_scale_below_one_is_refused(host: Host, motion: Motion, scale: float) -> None:
    with pytest.raises(LampError, match=f"motion_guidance.*{scale:g}"):
        draw(host, motion, motion_guidance=scale)
