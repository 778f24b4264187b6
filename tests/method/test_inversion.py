"""DDIM inversion: equal on both hosts, and a valid start for sampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    advanced,
    conditioning,
    core,
    count_hooks,
    lamp_ksampler,
    moving,
    worst,
)
from benchmarks.samples.tiny_models import reference, shallow_config, text, video_latent
from lamp.errors import LampError
from lamp.method.adain import AdaINSchedule
from lamp.method.inversion import inversion_timesteps, invert
from lamp.motion_file.file import MotionFile

pytestmark = pytest.mark.shallow
Nodes = dict[str, Any]
EMPTY = [[text(2), {}]]


@pytest.fixture(scope="module")
def model(plain: Any, file: MotionFile) -> Any:
    return moving(plain, file)


def clip(frames: int = 6) -> Tensor:
    """Host latents of a whole clip."""
    return 4 * torch.randn(frames, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def invert_node(nodes: Nodes, model: Any, samples: Tensor, **options: Any) -> Any:
    with torch.inference_mode():
        node = nodes["LAMP_DDIMInversion"]
        return node.execute(model, EMPTY, {"samples": samples}, **options)


def test_inversion_visits_the_sampling_timesteps_in_reverse() -> None:
    assert inversion_timesteps(50) == list(range(1, 982, 20))
    assert inversion_timesteps(10, 0.6) == [1, 101, 201, 301, 401, 501]


@pytest.mark.parametrize(
    ("steps", "strength", "named"),
    [(0, 1.0, "0"), (10, 1.5, "1.5"), (4, 0.1, "0.1")],
)
def test_invalid_inversion_settings_are_refused(steps: int, strength: float, named: str) -> None:
    with pytest.raises(LampError, match=named):
        inversion_timesteps(steps, strength)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_comfyui_inverts_as_the_reference(model: Any, file: MotionFile, strength: float) -> None:
    from lamp.hosts.comfy.inversion import invert_video

    latent = {"samples": clip()}
    with torch.inference_mode():
        ours = invert_video(model, EMPTY, latent, steps=10, strength=strength)
    expected = invert(
        *reference(file, shallow_config()), clip() * 0.18215, text(2), steps=10, strength=strength
    )
    assert worst(ours.latents, expected) < 1e-5
    assert torch.equal(latent["samples"], clip())


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "strength"), [(4, 1.0), (10, 0.6), (50, 0.96), (70, 0.9)])
def test_the_sampler_starts_where_the_inversion_ended(
    node_classes: Nodes, model: Any, steps: int, strength: float
) -> None:
    """The first thing that the model sees in sampling is the inverted clip with another frame 1."""
    noise, count, denoise, _ = invert_node(
        node_classes, model, clip(), steps=steps, strength=strength
    ).result
    assert count == round(steps * strength) and int(count / denoise) == steps
    from lamp.hosts.comfy.inversion import invert_video

    seen: list[Tensor] = []
    unet = model.model.diffusion_model
    handle = unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        with torch.inference_mode():
            end = invert_video(model, EMPTY, {"samples": clip()}, steps=steps, strength=strength)
            seen.clear()
            lamp_ksampler(
                model,
                steps=count,
                denoise=denoise,
                cfg=1.0,
                noise=noise["samples"],
                noise_level=noise["lamp_noise_level"],
            )
    finally:
        handle.remove()
    assert len(seen) == count
    assert worst(seen[0][1:], end.latents[1:]) < 1e-5
    assert worst(seen[0][:1], video_latent()[:1] * 0.18215) < 1e-6


@pytest.mark.slow
def test_editing_with_the_original_first_frame_reconstructs_the_clip(
    node_classes: Nodes, model: Any
) -> None:
    """Not exactly: in sampling frame 1 is clean, in inversion it is not. But far nearer to the
    clip than what other noise gives."""
    video = clip()
    start = torch.cat([video[:1], torch.zeros_like(video[1:])])
    noise, steps, _, _ = invert_node(node_classes, model, video, steps=20).result
    settings = {"steps": steps, "cfg": 1.0, "schedule": AdaINSchedule("off")}
    with torch.inference_mode():
        back = lamp_ksampler(model, start, noise=noise["samples"], **settings)
        other = lamp_ksampler(model, start, **settings)
    error = (back - video)[1:].square().mean()
    assert error < 0.5 * (other - video)[1:].square().mean()


def test_custom_sampling_accepts_the_noise(node_classes: Nodes, model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced

    found = invert_node(node_classes, model, clip(), steps=6, strength=0.5).result
    noise, steps, denoise, custom = found
    positive, negative = conditioning()
    arguments = (model, positive, negative, {"samples": video_latent()}, 0, steps, 5.0)
    with torch.inference_mode():
        schedule = node_classes["LAMP_AdaINSchedule"].execute("off")[0]
        sampler = node_classes["LAMP_Sampler"].execute("ddim", schedule)[0]
        sigmas = node_classes["LAMP_Scheduler"].execute(model, steps, denoise)[0]
        guider = core(CFGGuider, model, positive, negative, 5.0)[0]
        latent = {"samples": video_latent()}
        out = core(SamplerCustomAdvanced, custom, guider, sampler, sigmas, latent)[0]
        ours = node_classes["LAMP_KSampler"].execute(
            *arguments, adain="off", denoise=denoise, noise=noise
        )[0]
    assert torch.equal(out["samples"], ours["samples"])


@pytest.mark.slow
@pytest.mark.parametrize("protected", ["nothing", "the right half", "the right half softly"])
def test_a_latent_with_all_frames_is_not_added_to_the_inverted_clip(
    model: Any, protected: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the model sees first is the inverted clip alone, also where a mask keeps the frames.
    (With ddim, the host itself draws other noise there.)"""
    from lamp.hosts.comfy.inversion import invert_video
    from lamp.hosts.comfy.noise import GivenNoise
    from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, make_sampler, make_sigmas

    mask = torch.ones(1, 64, 64)
    mask[..., 32:] = {"nothing": 1.0, "the right half": 0.0}.get(protected, 0.5)
    masked = {} if protected == "nothing" else {"noise_mask": mask}
    video, seen = clip(), []
    unet, settings = model.model.diffusion_model, {"cfg": 1.0, "sampler": "euler"}
    settings["schedule"] = off = AdaINSchedule("off")
    with torch.inference_mode():
        for strength in (0.4, 1.0):
            end = invert_video(model, EMPTY, {"samples": video}, steps=10, strength=strength)
            sigmas = make_sigmas(model, OFFICIAL_SCHEDULER, end.steps, end.denoise)
            noise = GivenNoise(end.noise, level=end.level)
            look = unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
            more = {"latent": video, "cfg": 1.0, **masked}
            outs = [advanced(model, make_sampler("euler", off), sigmas, noise, **more)]
            if not masked:
                count = {"steps": end.steps, "denoise": end.denoise}
                given = {"noise": end.noise, "noise_level": end.level}
                outs.append(lamp_ksampler(model, video, **settings, **count, **given))
            look.remove()
            for start in seen[:: end.steps]:
                # The host shows protected places with its own scale of the noise.
                assert worst(start[1:], end.latents[1:]) < (0.01 if masked else 1e-5)
            seen.clear()
            for out in outs:
                if protected == "the right half":
                    assert worst(out[..., 5:], video[..., 5:]) < 1e-5
                assert worst(out[1:, ..., :4], video[1:, ..., :4]) > 0.01
    assert ("ignored" in caplog.text) == (not masked)


def test_a_start_at_another_level_is_refused(node_classes: Nodes, model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import BasicScheduler, CFGGuider, SamplerCustomAdvanced

    noise, *_, custom = invert_node(node_classes, model, clip(), steps=6, strength=0.5).result
    positive, negative = conditioning()
    latent = {"samples": video_latent()}
    with pytest.raises(LampError, match="^LAMP KSampler: .*steps and denoise"):
        node_classes["LAMP_KSampler"].execute(
            model, positive, negative, latent, 0, steps=6, noise=noise
        )
    schedule = node_classes["LAMP_AdaINSchedule"].execute("off")[0]
    sampler = node_classes["LAMP_Sampler"].execute("ddim", schedule)[0]
    guider = core(CFGGuider, model, positive, negative, 5.0)[0]
    for sigmas in (
        node_classes["LAMP_Scheduler"].execute(model, 6)[0],
        core(BasicScheduler, model, "normal", 3, 0.2)[0],
    ):
        with torch.inference_mode(), pytest.raises(LampError, match="steps and denoise"):
            core(SamplerCustomAdvanced, custom, guider, sampler, sigmas, latent)


def test_invalid_inputs_of_the_inversion_node_are_refused(
    node_classes: Nodes, plain: Any, model: Any
) -> None:
    with pytest.raises(LampError, match="^LAMP DDIM Inversion: .*LAMP motion"):
        invert_node(node_classes, plain, clip())
    with pytest.raises(LampError, match="Frame 2 .*VAE Encode"):
        invert_node(node_classes, model, video_latent())
    with pytest.raises(LampError, match="2 frames"):
        invert_node(node_classes, model, clip(1))


def test_a_cancel_leaves_nothing_behind(
    node_classes: Nodes, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management
    import comfy.utils

    before = invert_node(node_classes, model, clip(), steps=3)[0]["samples"]
    done: list[int] = []

    def cancel(value: int, total: int, *_: Any, **__: Any) -> None:
        done.append(value)
        if value == 2:
            raise management.InterruptProcessingException

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    # Newer versions pass on a step every 0.1 s at most.
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0, raising=False)
    with pytest.raises(management.InterruptProcessingException):
        invert_node(node_classes, model, clip(), steps=3)
    assert done == [1, 2] and count_hooks(model) == 0
    monkeypatch.undo()
    assert torch.equal(invert_node(node_classes, model, clip(), steps=3)[0]["samples"], before)
