"""Nodes for noise, sampling and colours, called as ComfyUI calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.samples.comfy_runs import core
from benchmarks.samples.tiny_models import random_motion, text, tiny_patcher, video_latent
from lamp.errors import LampError
from lamp.method.noise import draw_noise, share_noise

Nodes = dict[str, Any]


@pytest.fixture(scope="module")
def model(comfy: Any) -> Any:
    from lamp.hosts.comfy.binding import BoundMotion, bind, load_motion

    plain = tiny_patcher()
    return bind(plain, BoundMotion(load_motion(plain, random_motion(plain))))


# --- Shared Noise Latents -----------------------------------------------------------------------


def test_shared_noise_is_the_official_draw(node_classes: Nodes) -> None:
    latent = {"samples": torch.zeros(5, 4, 6, 7)}
    samples, noise = node_classes["LAMP_SharedNoise"].execute(latent, seed=3, alpha=0.2)
    drawn = torch.randn(1, 4, 5, 6, 7, generator=torch.Generator().manual_seed(3))[0]
    drawn = drawn.transpose(0, 1)
    assert torch.equal(samples["samples"][0], drawn[0])
    assert torch.allclose(samples["samples"][1:], 0.2 * drawn[:1] + 0.8 * drawn[1:])
    assert noise.seed == 3
    assert torch.equal(noise.generate_noise(latent), samples["samples"])


def test_shared_noise_needs_a_video(node_classes: Nodes) -> None:
    node = node_classes["LAMP_SharedNoise"]
    with pytest.raises(LampError, match="^Shared Noise Latents: .*1 frame of 4 x 8 x 8"):
        node.execute({"samples": torch.zeros(1, 4, 8, 8)}, 0)
    with pytest.raises(LampError, match=r"\(1, 4, 5, 8, 8\)"):
        node.execute({"samples": torch.zeros(1, 4, 5, 8, 8)}, 0)


# --- LAMP KSampler ------------------------------------------------------------------------------


def ksample(nodes: Nodes, model: Any, **options: Any) -> dict[str, Any]:
    arguments = {
        "model": model,
        "positive": [[text(1), {}]],
        "negative": [[text(2), {}]],
        "latent": {"samples": video_latent()},
        "seed": 7,
        "steps": 3,
        "cfg": 5.0,
        **options,
    }
    with torch.inference_mode():
        return nodes["LAMP_KSampler"].execute(**arguments)[0]


def test_the_sampler_keeps_frame_1_and_the_latents_other_entries(
    node_classes: Nodes, model: Any
) -> None:
    latent = {"samples": video_latent(), "batch_index": list(range(6))}
    out = ksample(node_classes, model, latent=latent)
    assert torch.equal(out["samples"][0], video_latent()[0])
    assert out["batch_index"] == list(range(6))
    assert torch.equal(latent["samples"], video_latent())


def test_the_sampler_uses_given_noise_unchanged(node_classes: Nodes, model: Any) -> None:
    own = ksample(node_classes, model)
    latent = {"samples": video_latent()}
    shared = node_classes["LAMP_SharedNoise"].execute(latent, 7, 0.2)[0]
    assert torch.equal(ksample(node_classes, model, noise=shared)["samples"], own["samples"])
    # a copy by another node, without the mark, is not mixed either
    copied = {"samples": share_noise(draw_noise(6, 4, 8, 8, 7), 0.2)}
    assert torch.equal(ksample(node_classes, model, noise=copied)["samples"], own["samples"])


def test_a_connected_schedule_overrides_the_menu(node_classes: Nodes, model: Any) -> None:
    off = node_classes["LAMP_AdaINSchedule"].execute("off")[0]
    by_menu = ksample(node_classes, model, adain="off")["samples"]
    by_link = ksample(node_classes, model, adain="paper", adain_schedule=off)["samples"]
    assert torch.equal(by_menu, by_link)
    assert not torch.equal(ksample(node_classes, model, adain="paper")["samples"], by_menu)
    custom = node_classes["LAMP_AdaINSchedule"].execute("custom", 0.6, 0.0, 0.0)[0]
    still = ksample(node_classes, model, adain_schedule=custom)["samples"]
    assert torch.allclose(still, by_menu, atol=1e-5)


def test_adain_gives_all_frames_the_statistics_of_frame_1(node_classes: Nodes, model: Any) -> None:
    frames = ksample(node_classes, model, adain="official")["samples"]
    std, mean = torch.std_mean(frames, dim=(2, 3))
    assert torch.allclose(std[1:], std[:1].expand(5, -1), rtol=1e-4)
    assert torch.allclose(mean[1:], mean[:1].expand(5, -1), atol=1e-4)


def test_custom_sampling_gives_the_same_video(node_classes: Nodes, model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import CFGGuider, SamplerCustomAdvanced

    latent = {"samples": video_latent()}
    with torch.inference_mode():
        noise = node_classes["LAMP_SharedNoise"].execute(latent, 7, 0.2)[1]
        schedule = node_classes["LAMP_AdaINSchedule"].execute("official")[0]
        sampler = node_classes["LAMP_Sampler"].execute("ddim", schedule)[0]
        sigmas = node_classes["LAMP_Scheduler"].execute(model, 3)[0]
        guider = core(CFGGuider, model, [[text(1), {}]], [[text(2), {}]], 5.0)[0]
        out = core(SamplerCustomAdvanced, noise, guider, sampler, sigmas, latent)[0]
    ours = ksample(node_classes, model, adain="official")["samples"]
    assert torch.equal(out["samples"], ours)


def test_a_schedule_in_two_parts_gives_the_same_video(node_classes: Nodes, model: Any) -> None:
    from comfy_extras.nodes_custom_sampler import (
        CFGGuider,
        DisableNoise,
        SamplerCustomAdvanced,
        SplitSigmas,
    )

    latent = {"samples": video_latent()}
    with torch.inference_mode():
        noise = node_classes["LAMP_SharedNoise"].execute(latent, 7, 0.2)[1]
        schedule = node_classes["LAMP_AdaINSchedule"].execute("off")[0]
        sampler = node_classes["LAMP_Sampler"].execute("ddim", schedule)[0]
        guider = core(CFGGuider, model, [[text(1), {}]], [[text(2), {}]], 5.0)[0]
        sigmas = node_classes["LAMP_Scheduler"].execute(model, 6)[0]
        high, low = core(SplitSigmas, sigmas, 4)
        half = core(SamplerCustomAdvanced, noise, guider, sampler, high, latent)[0]
        still = core(DisableNoise)[0]
        out = core(SamplerCustomAdvanced, still, guider, sampler, low, half)[0]["samples"]
    whole = ksample(node_classes, model, steps=6, adain="off")["samples"]
    assert torch.equal(half["samples"][0], video_latent()[0])
    assert torch.allclose(out, whole, rtol=0, atol=1e-4 * whole.abs().max().item())


def test_the_scheduler_is_the_official_one(node_classes: Nodes, model: Any) -> None:
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    ddim.set_timesteps(50)
    alphas = torch.cat([ddim.alphas_cumprod[ddim.timesteps], ddim.final_alpha_cumprod[None]])
    sigmas = node_classes["LAMP_Scheduler"].execute(model, 50)[0]
    assert torch.allclose(sigmas, ((1 - alphas) / alphas).sqrt(), rtol=1e-4)
    half = node_classes["LAMP_Scheduler"].execute(model, 50, 0.5)[0]
    twice = node_classes["LAMP_Scheduler"].execute(model, 100)[0]
    assert torch.equal(half, twice[-51:])


@pytest.mark.parametrize("sampler", ["euler", "uni_pc", "dpm_2"])
@pytest.mark.parametrize("denoise", [0.4, 1.0])
def test_stock_schedulers_have_the_stock_levels(model: Any, sampler: str, denoise: float) -> None:
    import comfy.samplers

    from lamp.hosts.comfy.sampler import make_sigmas

    for scheduler in ("normal", "karras", "ddim_uniform"):
        stock = comfy.samplers.KSampler(
            model, 6, torch.device("cpu"), sampler, scheduler, denoise
        ).sigmas
        assert torch.equal(make_sigmas(model, scheduler, 6, denoise, sampler), stock)


def test_errors_name_what_is_wrong(node_classes: Nodes, model: Any) -> None:
    def refused(facts: str, model: Any = model, **options: Any) -> None:
        with pytest.raises(LampError, match=f"^LAMP KSampler: .*{facts}"):
            ksample(node_classes, model, **options)

    refused("MODEL.*Load LAMP Motion", tiny_patcher())
    noise = {"samples": draw_noise(5, 4, 8, 8, 0)}
    refused("5 frames of 4 x 8 x 8.*6 frames of 4 x 8 x 8", noise=noise)
    refused("1 frame of 4 x 8 x 8.*LAMP First-Frame Condition", latent={"samples": video_latent(1)})
    broken = video_latent()
    broken[0] = float("nan")
    refused("latent.*NaN", latent={"samples": broken})
    refused("16 channels.* 4", latent={"samples": torch.ones(6, 16, 8, 8)})
    refused("Frame 1 .*empty", latent={"samples": torch.zeros(6, 4, 8, 8)})
    refused("'uni_pc'", sampler_name="uni_pc")
    refused("sampler_name.*'best'.*euler", sampler_name="best")
    refused(r"scheduler.*'best'.*ddim \(official\)", scheduler="best")
    refused("adain.*'best'", adain="best")
    refused("1600.*1000", steps=800, denoise=0.5)
    ksample(node_classes, model, sampler_name="uni_pc", adain="off")


def test_progress_and_previews_reach_the_host(
    node_classes: Nodes, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.utils

    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total))
    )
    ksample(node_classes, model)
    # Newer hosts skip updates that come too soon after the last one, but never the final one.
    assert seen in ([(1, 3), (2, 3), (3, 3)], [(1, 3), (3, 3)])


def test_lamp_sampler_needs_a_motion(node_classes: Nodes, comfy: Any) -> None:
    import comfy.sample

    sampler = node_classes["LAMP_Sampler"].execute("euler")[0]
    with pytest.raises(LampError, match="MODEL.*motion"):
        comfy.sample.sample_custom(
            tiny_patcher(),
            torch.randn(6, 4, 8, 8),
            5.0,
            sampler,
            torch.tensor([10.0, 1.0, 0.0]),
            [[text(1), {}]],
            [[text(2), {}]],
            video_latent(),
            disable_pbar=True,
        )


# --- Histogram Match ----------------------------------------------------------------------------


def test_histograms_are_matched_frame_by_frame(node_classes: Nodes) -> None:
    from skimage.exposure import match_histograms

    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(35, 24, 32, 3, generator=generator) ** 2  # several chunks
    frames = (frames * 255).round() / 255
    out = node_classes["LAMP_HistogramMatch"].execute(frames)[0]
    assert out.device.type == "cpu" and out.shape == frames.shape
    assert torch.equal(out[0], frames[0])
    for index in (1, 16, 34):
        expected = match_histograms(frames[index].numpy(), frames[0].numpy(), channel_axis=-1)
        # the reference interpolates between levels, the official method takes the next level
        assert (out[index] - torch.from_numpy(expected)).abs().max() <= 6 / 255
        assert (out[index] - frames[index]).abs().max() > 10 / 255


def test_histograms_follow_a_reference_of_any_size(node_classes: Nodes) -> None:
    node = node_classes["LAMP_HistogramMatch"]
    frames = torch.rand(3, 16, 16, 3)
    dark = torch.rand(2, 40, 30, 3) * 0.2
    out = node.execute(frames, 1.0, dark)[0]
    # The official rounding may turn a frame's brightest level white, one pixel in 85 here.
    assert (out <= 0.2).float().mean() > 0.98
    assert out.mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(node.execute(frames, 0.0, dark)[0], frames)


def test_histogram_errors_name_what_is_wrong(node_classes: Nodes) -> None:
    node = node_classes["LAMP_HistogramMatch"]
    with pytest.raises(LampError, match="^Histogram Match: .*3 channels.*4"):
        node.execute(torch.rand(2, 8, 8, 3), 1.0, torch.rand(1, 8, 8, 4))
    broken = torch.rand(2, 8, 8, 3)
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(LampError, match="^Histogram Match: .*NaN"):
        node.execute(broken)
