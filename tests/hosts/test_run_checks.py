"""Inputs and outputs of a run: latents, noise, masks, previews."""

from __future__ import annotations

import importlib
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
from lamp.errors import LampError
from lamp.method.masks import MotionMask
from lamp.method.noise import draw_noise, share_noise
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]
SCALE = 0.18215


@pytest.fixture(scope="module")
def model(plain: Any, file: MotionFile) -> Any:
    return moving(plain, file)


# --- outputs and previews -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "off", "paper", "official"])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun"])
def test_both_outputs_of_the_custom_sampler_are_the_same_video(
    model: Any, name: str, mode: Any
) -> None:
    """At sigma 0 there is nothing left between the video and its last prediction."""
    outs = [advanced(model, sampler(name, mode), levels(model), output=i) for i in (0, 1)]
    assert worst(outs[1], outs[0]) < 1e-5


def test_the_older_custom_sampler_gives_its_prediction_in_order(model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    positive, negative = conditioning()
    latent = {"samples": video_latent()}
    out, denoised = core(
        SamplerCustom, model, True, SEED, 5.0, positive, negative, sampler(), levels(model), latent
    )[:2]
    assert worst(denoised["samples"], out["samples"]) < 1e-5


class Previewer:
    """A pack's previewer that plays a video, as VideoHelperSuite's does."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def decode_latent_to_preview_image(self, preview_format: str, x0: Tensor) -> None:
        self.seen.append(x0.clone())


@pytest.mark.parametrize("ours", [False, True])
def test_previews_of_other_packs_get_all_frames_in_order(
    model: Any, monkeypatch: pytest.MonkeyPatch, ours: bool
) -> None:
    import latent_preview

    previewer = Previewer()
    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: previewer)
    out = lamp_ksampler(model, scheduler="normal") if ours else ksampler(model)
    assert len(previewer.seen) == STEPS
    assert worst(previewer.seen[-1], out * SCALE) < 1e-5


def test_the_hosts_own_preview_shows_a_frame_that_moves(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import latent_preview

    shown: list[Tensor] = []

    def decode(self: Any, x0: Tensor) -> None:
        shown.append(x0[0].clone())

    factors = model.model.latent_format.latent_rgb_factors
    own = latent_preview.Latent2RGBPreviewer(factors)
    monkeypatch.setattr(latent_preview.Latent2RGBPreviewer, "decode_latent_to_preview", decode)
    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: own)
    out = lamp_ksampler(model, scheduler="normal")
    assert worst(shown[-1], out[3] * SCALE) < 1e-5


# --- noise levels ---------------------------------------------------------------------------------


def test_only_the_official_schedule_has_its_start(model: Any) -> None:
    """Rounding lets others begin at the same number, one float above a level of the model."""
    from lamp.hosts.comfy.levels import starts_official
    from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, make_sigmas, scheduler_names

    sampling, near = model.get_model_object("model_sampling"), 0
    over = torch.nextafter(sampling.sigmas, torch.tensor(torch.inf))
    for name in scheduler_names():
        for steps in (1, 2, 3, 10, 20, 30, 38, 40):
            sigmas = make_sigmas(model, name, steps)
            for begin in range(len(sigmas) - 1):
                part = sigmas[begin:]
                expected = name == OFFICIAL_SCHEDULER and not begin
                assert starts_official(part, sampling) == expected, (name, steps, begin)
                near += not expected and bool((over == part[0]).any())
                if expected and len(part) > 1:
                    assert starts_official(part[:2], sampling)
                    others = torch.cat([part[:1], (part[:1] + part[1:2]) / 2, torch.zeros(1)])
                    assert starts_official(others, sampling)  # as nodes that change levels give
    assert near > 5


# --- noise ----------------------------------------------------------------------------------------


def drawing_anew(model: Any, noise: Tensor) -> Any:
    """The MODEL behind a node whose sample settings draw the noise themselves."""
    from comfy.patcher_extension import WrappersMP

    def outer_sample(executor: Any, _: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return executor(noise.clone(), *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "settings", outer_sample)
    return model


def test_noise_drawn_again_by_a_later_node_is_shared(plain: Any, file: MotionFile) -> None:
    from lamp.hosts.comfy.noise import GivenNoise, SharedNoise

    noise = draw_noise(6, 4, 8, 8, 99)
    for model in (
        drawing_anew(moving(plain, file, alpha=0.3), noise),  # behind ours
        moving(drawing_anew(plain, noise), file, alpha=0.3),
    ):
        expected = advanced(
            moving(plain, file), sampler(), levels(model), GivenNoise(share_noise(noise, 0.3))
        )
        for given in (None, SharedNoise(SEED, 0.2)):
            assert worst(advanced(model, sampler(), levels(model), given), expected) < 1e-6


def noised(model: Any, latent: Tensor, sigmas: Tensor) -> Tensor:
    from comfy_extras.nodes_custom_sampler import AddNoise, RandomNoise

    noise = core(RandomNoise, 5)[0]
    return core(AddNoise, model, noise, sigmas, {"samples": latent})[0]["samples"]


def test_noise_in_frame_1_is_refused(plain: Any, model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import DisableNoise

    silent, sigmas = core(DisableNoise)[0], levels(model, steps=8)
    textured = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(6)) * 2
    with pytest.raises(LampError, match="Frame 1"):  # noise on top of noise
        advanced(model, sampler(), sigmas, latent=noised(model, video_latent(), sigmas))
    cases = [(noised(model, video_latent(), sigmas), sigmas)]
    cases += [(noised(model, textured, sigmas[at:]), sigmas[at:]) for at in (1, 3, 4)]
    for latent, part in cases:
        with pytest.raises(LampError, match="Frame 1"):
            advanced(model, sampler(), part, silent, 1.0, latent)
    # the plain model for some steps, then the motion
    halfway = advanced(plain, sampler(), sigmas[:4], None, 1.0, textured)
    with pytest.raises(LampError, match="Frame 1"):
        advanced(model, sampler(), sigmas[3:], silent, 1.0, halfway)
    # with the motion from the beginning it goes on
    halfway = advanced(model, sampler(), sigmas[:4], None, 1.0, textured)
    assert advanced(model, sampler(), sigmas[3:], silent, 1.0, halfway).isfinite().all()


def test_smooth_frames_after_a_textured_frame_1_are_accepted(model: Any) -> None:
    """Pictures grow smoother while they move, so frames with noise may be as rough as frame 1."""
    from comfy_extras.nodes_custom_sampler import DisableNoise

    generator = torch.Generator().manual_seed(6)
    texture = torch.randn(3, 4, 32, 32, generator=generator)
    for sigma in (0.75, 1.0, 2.0):
        sigmas = torch.tensor([sigma, 0.1, 0.0])
        latent = torch.full((3, 4, 32, 32), 0.2)
        latent[0] += 0.6 * texture[0]
        latent[1:] += 0.82 * sigma * texture[1:]
        out = advanced(model, sampler(), sigmas, core(DisableNoise)[0], 1.0, latent / SCALE)
        assert out.isfinite().all()


def test_a_run_without_noise_is_refused(model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import DisableNoise

    with pytest.raises(LampError, match="add_noise"):
        advanced(model, sampler(), levels(model), core(DisableNoise)[0])


@pytest.mark.parametrize("ours", [True, False])
def test_a_start_in_the_middle_needs_all_frames(model: Any, ours: bool) -> None:
    """Empty frames are no picture to keep a part of: they are grey with too little noise."""
    from lamp.hosts.comfy.sampler import make_sigmas

    def run(model: Any, latent: Tensor | None = None, denoise: float = 1.0) -> Tensor:
        if ours:
            return lamp_ksampler(model, latent, denoise=denoise)
        sigmas = make_sigmas(model, "karras", STEPS, denoise)
        return advanced(model, sampler(), sigmas, latent=latent)

    for denoise in (0.2, 0.6):
        with pytest.raises(LampError, match="denoise"):
            run(model, denoise=denoise)
    assert run(model, denoise=0.95).isfinite().all()
    video = video_latent()
    video[1:] = video[:1] + 0.1 * torch.randn(len(video) - 1, *video.shape[1:])
    assert run(model, video, denoise=0.6).isfinite().all()


def test_a_mask_of_another_shape_than_the_video_is_told(
    plain: Any, file: MotionFile, caplog: pytest.LogCaptureFixture
) -> None:
    """It is stretched, which is right only for a picture that is stretched, too."""
    from lamp.clips.images import fit_images
    from lamp.method.masks import resize_masks

    def told(mask: Tensor) -> str:
        caplog.clear()
        lamp_ksampler(moving(plain, file, motion_mask=MotionMask(mask, feather=0.1)))
        return caplog.text

    for size in ((64, 64), (33, 32), (1000, 1000)):
        assert not told(torch.eye(*size))
    assert not told(torch.full((40, 64), 0.5))  # alike everywhere
    for size in ((40, 64), (72, 64)):
        assert f"{size[1]} x {size[0]}" in told(torch.eye(*size))
    mask = torch.rand(1, 1, 40, 64)
    picture = mask[0, 0][None, ..., None].expand(-1, -1, -1, 3)
    shown = {fit: fit_images(picture, 8, 8, fit)[0, ..., 0] for fit in ("crop", "stretch")}
    mine = resize_masks(mask, (8, 8))[0, 0]
    assert (shown["stretch"] - mine).abs().max() < 1e-3 < (shown["crop"] - mine).abs().max()


def test_a_sampler_inside_another_nodes_sampler_works_as_alone(model: Any) -> None:
    """As nodes that shift the noise levels do it: the sampler sees a function, and no model."""
    import comfy.samplers

    ours = sampler("euler", "paper")

    def outer(inner_model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        def call(x: Tensor, sigma: Tensor, **more: Any) -> Tensor:
            return inner_model(x, sigma, **more)

        return ours.sampler_function(call, x, sigmas, **options)

    for scheduler in ("ddim (official)", "normal"):
        sigmas = levels(model, scheduler)
        out = advanced(model, comfy.samplers.KSAMPLER(outer), sigmas)
        assert torch.equal(out, advanced(model, ours, sigmas))


# --- the latent -----------------------------------------------------------------------------------


def test_several_videos_in_one_latent_are_refused(model: Any) -> None:
    import nodes

    one, other = {"samples": video_latent(4)}, {"samples": video_latent(4, seed=9)}
    repeated = nodes.RepeatLatentBatch().repeat(one, 2)[0]
    # Newer hosts import these two from each other, and find the second one only this way around.
    importlib.import_module("comfy_extras.nodes_post_processing")
    from comfy_extras.nodes_latent import LatentBatch

    joined = core(LatentBatch, one, other)[0]
    clip = {"samples": torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(6))}
    twice = nodes.RepeatLatentBatch().repeat(clip, 2)[0]
    for latent in (repeated, joined, twice):
        with pytest.raises(LampError, match="frame 5|Frame 5"):
            ksampler(model, **latent)
        with pytest.raises(LampError, match="frame 5|Frame 5"):
            lamp_ksampler(model, latent["samples"])
    still = nodes.RepeatLatentBatch().repeat({"samples": video_latent()[:1]}, 6)[0]
    assert lamp_ksampler(model, still["samples"]).isfinite().all()


def test_a_sampler_that_changes_the_size_is_refused(model: Any) -> None:
    from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale

    grows = core(SamplerLCMUpscale, 2.0, 1, "nearest-exact")[0]
    with pytest.raises(LampError, match="SamplerLCMUpscale"):
        advanced(model, grows, levels(model))
