"""Extending a video: no repeated frame, colours of frame 1."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import SEED, STEPS, conditioning, lamp_ksampler, moving
from benchmarks.samples.ecosystem import host_node
from benchmarks.samples.tiny_models import random_motion, tiny_patcher, video_latent
from lamp.errors import LampError
from lamp.hosts.comfy.inversion import invert_video
from lamp.method.extend import extend


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drifting(start: Tensor, number: int) -> Tensor:
    """A piece of 4 frames that grows brighter by 1 with each."""
    return start + torch.arange(4.0)[:, None, None, None] + number * 0


def test_pieces_are_joined_without_repeating_a_frame() -> None:
    clip = noise(3, 4, 5, 5)
    longer = extend(clip, drifting, times=2, hold=0.0)
    assert longer.shape[0] == 3 + 2 * 3
    assert torch.equal(longer[:3], clip)
    steps = (longer[1:] - longer[:-1])[2:]
    assert torch.allclose(steps, torch.ones_like(steps), atol=1e-5)


def test_each_piece_starts_with_the_statistics_of_frame_1() -> None:
    starts: list[Tensor] = []

    def draw(start: Tensor, number: int) -> Tensor:
        starts.append(start)
        return drifting(start, number)

    clip = noise(3, 4, 5, 5) * torch.tensor([1.0, 2.0, 3.0])[:, None, None, None] + 5
    extend(clip, draw, times=3, hold=1.0)
    expected = torch.std_mean(clip[0], dim=(1, 2))
    for start in starts:
        for found, wanted in zip(torch.std_mean(start[0], dim=(1, 2)), expected, strict=True):
            assert torch.allclose(found, wanted, atol=1e-4)
    # The picture is still that of the last frame.
    correlation = torch.corrcoef(torch.stack([starts[0][0, 0].flatten(), clip[2, 0].flatten()]))
    assert correlation[0, 1] > 0.999


@pytest.mark.parametrize(("times", "hold"), [(0, 1.0), (1, 1.5), (1, -0.1)])
def test_invalid_extensions_are_refused(times: int, hold: float) -> None:
    with pytest.raises(LampError, match="times.*0|hold_colors"):
        extend(noise(2, 4, 3, 3), drifting, times, hold)


@pytest.fixture(scope="module")
def model(comfy: Any) -> Any:
    plain = tiny_patcher()
    return moving(plain, random_motion(plain))


def run(
    nodes: dict[str, Any], model: Any, latent: Tensor, mask: Tensor | None = None, **options: Any
) -> Tensor:
    settings = {"frames": 4, "times": 2, "hold_colors": 0.0, "seed": SEED, "steps": STEPS}
    given = {"samples": latent, **({} if mask is None else {"noise_mask": mask})}
    with torch.inference_mode():
        out = nodes["LAMP_ExtendVideo"].execute(
            model, *conditioning(), given, **{**settings, "cfg": 5.0, "adain": "off", **options}
        )[0]
    assert out.keys() == given.keys()
    return out["samples"]


def test_a_piece_is_sampled_from_the_last_frame(node_classes: dict[str, Any], model: Any) -> None:
    clip = 4 * noise(3, 4, 8, 8)
    longer = run(node_classes, model, clip)
    assert longer.shape[0] == 9 and torch.equal(longer[:3], clip)
    for number, last in ((0, 2), (1, 5)):
        start = torch.cat([longer[last : last + 1], torch.zeros(3, 4, 8, 8)])
        with torch.inference_mode():
            piece = lamp_ksampler(model, start, seed=SEED + number)
        assert torch.equal(longer[last + 1 : last + 4], piece[1:])


def test_held_colours_are_those_of_frame_1(node_classes: dict[str, Any], model: Any) -> None:
    clip = 4 * noise(3, 4, 8, 8) * torch.tensor([1.0, 1.5, 2.0])[:, None, None, None]
    held = run(node_classes, model, clip, hold_colors=1.0, adain="official")
    spread = held.std(dim=(2, 3))
    assert torch.allclose(spread[3:], spread[:1].expand(6, -1), rtol=1e-3)
    free = run(node_classes, model, clip, hold_colors=0.0, adain="official")
    assert not torch.allclose(free.std(dim=(2, 3))[3:], spread[:1].expand(6, -1), rtol=0.1)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("adain", ["off", "paper", "official"])
def test_what_the_latents_mask_protects_stays(
    node_classes: dict[str, Any], model: Any, adain: str, each: bool
) -> None:
    clip = 4 * noise(3, 4, 8, 8) * torch.tensor([1.0, 1.5, 2.0])[:, None, None, None]
    mask = torch.ones(3 if each else 1, 64, 64)
    mask[..., 32:] = 0.0
    longer = run(node_classes, model, clip, mask, hold_colors=1.0, adain=adain)
    kept = clip[-1:, ..., 4:].expand(6, -1, -1, -1)
    torch.testing.assert_close(longer[3:, ..., 4:], kept, rtol=0, atol=1e-4)
    assert (longer[3:, ..., :4] - clip[-1:, ..., :4]).abs().max() > 0.1


def test_several_videos_are_refused(node_classes: dict[str, Any], model: Any) -> None:
    """As ComfyUI's own batch nodes make them."""
    import nodes

    one, other = ({"samples": 4 * torch.randn(4, 4, 8, 8)} for _ in range(2))
    importlib.import_module("comfy_extras.nodes_post_processing")  # first, in newer hosts
    (again,) = nodes.RepeatLatentBatch().repeat(one, 2)
    batch = host_node("latent", "LatentBatch", samples1=one, samples2=other)
    part = nodes.LatentFromBatch().frombatch(one, 1, 3)[0]
    extending = node_classes["LAMP_ExtendVideo"].execute
    settings = {"frames": 4, "times": 1, "hold_colors": 0.0, "seed": SEED, "steps": 1}
    settings |= {"cfg": 1.0, "adain": "off"}
    for latent in (again, batch):
        with pytest.raises(LampError, match="frame 5"), torch.inference_mode():
            extending(model, *conditioning(), latent, **settings)
        with pytest.raises(LampError, match="frame 5"), torch.inference_mode():
            invert_video(model, conditioning()[0], latent, steps=1)
    with torch.inference_mode():
        extending(model, *conditioning(), part, **settings)
        invert_video(model, conditioning()[0], part, steps=1)


def test_the_largest_seed_wraps_around(node_classes: dict[str, Any], model: Any) -> None:
    longer = run(node_classes, model, 4 * noise(2, 4, 8, 8), seed=2**64 - 2, steps=1)
    assert longer.isfinite().all()


def test_an_empty_last_frame_is_refused(node_classes: dict[str, Any], model: Any) -> None:
    with pytest.raises(LampError, match="^LAMP Extend Video: .*last frame"):
        run(node_classes, model, video_latent())


def test_inversion_of_a_flow_model_is_refused(model: Any) -> None:
    flow = host_node("model_advanced", "ModelSamplingSD3", model=model, shift=3.0)
    with pytest.raises(LampError, match="ModelSamplingSD3"), torch.inference_mode():
        invert_video(flow, conditioning()[0], {"samples": noise(4, 4, 8, 8)}, steps=2)
