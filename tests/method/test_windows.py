"""Long videos: more frames at once than trained, and in windows that all see frame 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import SEED, STEPS, conditioning, lamp_ksampler, moving, worst
from benchmarks.samples.ecosystem import sample as run_sampler
from benchmarks.samples.tiny_models import reference, text, tiny_config, video_latent
from lamp.errors import LampError
from lamp.hosts.comfy.sampler import make_sigmas
from lamp.method.adain import AdaINSchedule
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import sample
from lamp.method.windows import Windows, predict_in_windows, returns
from lamp.motion_file.file import MotionFile
from tests.hosts.test_run_frames import gligen

# --- the windows themselves -----------------------------------------------------------------------


def test_every_window_begins_with_frame_1_and_has_one_length() -> None:
    places = Windows(length=8, overlap=2).frame_indices(20)
    assert places[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert places[1] == [0, 6, 7, 8, 9, 10, 11, 12]
    assert places[-1] == [0, 13, 14, 15, 16, 17, 18, 19]
    assert {len(window) for window in places} == {8}


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("overlap", [0, 1, 4, 6])
@pytest.mark.parametrize("frames", [4, 7, 8, 9, 15, 16, 64])
def test_the_weights_of_every_frame_sum_to_one(frames: int, overlap: int, loop: bool) -> None:
    windows = Windows(8, overlap, loop)
    places, shares = windows.frame_indices(frames), windows.weights(frames)
    assert sorted({frame for window in places for frame in window}) == list(range(frames))
    whole = torch.zeros(frames)
    for window, share in zip(places, shares, strict=True):
        assert all((b - a) % frames == 1 for a, b in zip(window[1:], window[2:], strict=False))
        assert len(window) == len(share) == len(places[0])
        whole.index_add_(0, torch.tensor(window), share)
    assert torch.allclose(whole, torch.ones(frames))


@pytest.mark.parametrize("frames", [4, 8, 20])
def test_a_loop_has_one_window_more_across_its_end(frames: int) -> None:
    loop, plain = Windows(8, 2, loop=True), Windows(8, 2)
    *places, seam = loop.frame_indices(frames)
    assert places == plain.frame_indices(frames)
    (back,) = returns(seam)
    assert seam[0] == 0 and seam[back - 1 : back + 2] == [frames - 1, 0, 1]
    *shares, share = loop.weights(frames)
    expected = torch.zeros(len(seam))
    expected[[back - 1, back + 1]] = 0.5
    assert torch.equal(share, expected)
    for window, ours, theirs in zip(places, shares, plain.weights(frames), strict=True):
        beside = torch.tensor([frame in (1, frames - 1) for frame in window])
        assert torch.equal(ours, torch.where(beside, theirs / 2, theirs))


def test_a_loop_shows_frame_1_as_noisy_as_its_neighbours() -> None:
    x = torch.arange(1.0, 11.0).repeat(2)[:, None, None, None].expand(-1, 4, 3, 3)
    seen = []

    def predict(rows: Tensor, shown: Tensor) -> Tensor:
        seen.append(shown[:, 0, 0, 0].tolist())
        return shown

    noisy = torch.tensor([-1.0, -2.0])[:, None, None, None].expand(-1, 4, 3, 3)
    out = predict_in_windows(predict, x, Windows(6, 1, loop=True), 10, noisy)
    assert seen[-1] == [1, 9, 10, -1, 2, 3, 1, 9, 10, -2, 2, 3]
    assert torch.allclose(out, x)  # what is predicted for the noisy frame 1 is not used


@pytest.mark.parametrize(("length", "frames"), [(3, 16), (8, 3)])
def test_a_loop_of_too_few_frames_is_refused(length: int, frames: int) -> None:
    with pytest.raises(LampError, match="3"):
        Windows(length, 1, loop=True).frame_indices(frames)


def test_the_blend_is_linear() -> None:
    """Two windows of 7 own frames share 3: the later one gains a quarter a frame."""
    first, second = Windows(8, 3).weights(12)
    assert torch.allclose(first[-3:], torch.tensor([0.75, 0.5, 0.25]))
    assert torch.allclose(second[1:4], torch.tensor([0.25, 0.5, 0.75]))
    assert torch.equal(first[1:-3], torch.ones(4))


def test_a_prediction_that_needs_no_neighbours_is_not_changed() -> None:
    x = torch.randn(2 * 20, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    out = predict_in_windows(lambda rows, shown: shown**2, x, Windows(8, 3), 20)
    assert torch.allclose(out, x**2, atol=1e-6)


@pytest.mark.parametrize(("length", "overlap"), [(1, 0), (8, 7), (8, -1), (2, 1)])
def test_invalid_windows_are_refused(length: int, overlap: int) -> None:
    with pytest.raises(LampError, match="[Ww]indow"):
        Windows(length, overlap)


# --- in the hosts ---------------------------------------------------------------------------------


def both_hosts(
    plain: Any, file: MotionFile, frames: int, windows: Windows | None
) -> tuple[Tensor, Tensor]:
    from lamp.hosts.comfy.windows import with_windows

    noise = share_noise(draw_noise(frames, 4, 8, 8, SEED), 0.2)
    first = video_latent()[:1] * 0.18215
    expected = sample(
        *reference(file, tiny_config()),
        first,
        noise,
        text(1),
        text(2),
        steps=STEPS,
        guidance=5.0,
        schedule=AdaINSchedule("paper"),
        windows=windows,
    )
    model = moving(plain, file)
    if windows is not None:
        model = with_windows(model, windows)
    with torch.inference_mode():
        ours = lamp_ksampler(
            model, video_latent(frames), noise=noise, schedule=AdaINSchedule("paper")
        )
    return ours * 0.18215, expected


@pytest.mark.slow
def test_more_frames_than_trained_run_on_both_hosts(plain: Any, file: MotionFile) -> None:
    ours, expected = both_hosts(plain, file, 40, None)
    assert ours.shape[0] == 40 and ours.isfinite().all()
    assert worst(ours, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "windows"),
    [(13, Windows(6, 2)), (13, Windows(6, 2, loop=True)), (6, Windows(6, 2, loop=True))],
)
def test_windows_give_the_same_video_on_both_hosts(
    plain: Any, file: MotionFile, frames: int, windows: Windows
) -> None:
    ours, expected = both_hosts(plain, file, frames, windows)
    assert worst(ours, expected) < 1e-4
    assert torch.equal(ours[0], expected[0])
    whole, _ = both_hosts(plain, file, frames, None)
    assert worst(ours, whole) > 1e-2


def windowed(nodes: dict[str, Any], model: Any, length: int, overlap: int) -> Any:
    return nodes["LAMP_AnchoredWindows"].execute(model, length, overlap)[0]


def test_a_short_video_is_one_window(node_classes: Any, plain: Any, file: MotionFile) -> None:
    model = moving(plain, file)
    with torch.inference_mode():
        assert torch.equal(lamp_ksampler(windowed(node_classes, model, 6, 2)), lamp_ksampler(model))


@pytest.mark.parametrize("frames", [12, 48])
def test_the_model_never_sees_more_than_a_window(
    node_classes: Any, plain: Any, file: MotionFile, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So memory is flat in the number of frames; the host is asked for as much."""
    import comfy.sampler_helpers

    model = windowed(node_classes, moving(plain, file), 6, 2)
    seen, asked = [], []
    prepare = comfy.sampler_helpers._prepare_sampling

    def asking(model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(list(noise_shape))
        return prepare(model, noise_shape, *args, **kwargs)

    monkeypatch.setattr(comfy.sampler_helpers, "_prepare_sampling", asking)
    unet = plain.model.diffusion_model
    handle = unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        with torch.inference_mode():
            lamp_ksampler(model, video_latent(frames), cfg=1.0, steps=1)
    finally:
        handle.remove()
    assert set(seen) == {6} and len(seen) == len(Windows(6, 2).frame_indices(frames))
    assert asked == [[6, 4, 8, 8]]


def stages(model: Any, latent: Tensor, split: int, sampler: str) -> Tensor:
    """Two KSampler (Advanced) nodes, or one for `split` 0."""
    import nodes

    for add, start, end in ((True, 0, split or 99), (False, split, 99))[: 1 + bool(split)]:
        (found,) = nodes.common_ksampler(
            model, SEED, 6, 3.0, sampler, "normal", *conditioning(), {"samples": latent},
            disable_noise=not add, start_step=start, last_step=end, force_full_denoise=end == 99,
        )  # fmt: skip
        latent = found["samples"]
    return latent


@pytest.mark.slow
def test_a_loop_shows_frame_1_with_the_noise_of_its_level(
    plain: Any, file: MotionFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sampler's own state of frame 1 is: clean in a second stage, noisier and noisier
    with CFG++, which steps with a prediction that nobody replaces."""
    from lamp.hosts.comfy import windows as comfy_windows

    seen: list[tuple[float, float]] = []
    model, latent = moving(plain, file), video_latent(7)
    first = latent[:1] * 0.18215

    def note(predict: Any, x: Tensor, windows: Any, frames: int, noisy: Tensor) -> Tensor:
        others = x.unflatten(0, (-1, frames))[0, 1:]
        seen.append(((noisy - first).std().item(), others.std().item()))
        return predict_in_windows(predict, x, windows, frames, noisy)

    loop = comfy_windows.with_windows(model, Windows(4, 1, loop=True))
    with torch.inference_mode():
        whole = stages(loop, latent, 0, "euler")
        for split in (1, 3):
            assert worst(stages(loop, latent, split, "euler"), whole) < 1e-5
        monkeypatch.setattr(comfy_windows, "predict_in_windows", note)
        for sampler in ("euler", "euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp"):
            stages(loop, latent, 0, sampler)
        sigmas = make_sigmas(model, "normal", 6)[:-1].tolist()
    assert len(seen) == 4 * len(sigmas)
    shares = [noise / sigma for (noise, _), sigma in zip(seen, 4 * sigmas, strict=True)]
    assert max(shares) < 1.001 * min(shares) and 0.7 < shares[0] < 1.3


def test_loops_refuse_what_cannot_return_to_frame_1(plain: Any, file: MotionFile) -> None:
    """Boxes for each frame, a part of the picture, a piece of a longer video, a short video."""
    from lamp.hosts.comfy.frames import model_for_piece
    from lamp.hosts.comfy.run import Piece
    from lamp.hosts.comfy.windows import with_windows

    loop, latent = with_windows(moving(plain, file), Windows(4, 1, loop=True)), video_latent(7)
    with pytest.raises(LampError, match="GLIGEN"):
        run_sampler(loop, positive=gligen(plain), samples=latent)
    with pytest.raises(LampError, match="Set Mask"):
        area = [[text(1), {"area": (4, 4, 0, 0), "strength": 1.0}]]
        run_sampler(loop, positive=area, samples=latent)
    with pytest.raises(LampError, match="Extend Video"):
        piece = Piece(tuple(range(6, 13)), 13)
        run_sampler(model_for_piece(loop, piece), samples=latent)
    with pytest.raises(LampError, match="4 frames"):
        run_sampler(loop, samples=video_latent(3))


@pytest.mark.slow
def test_prompts_per_frame_follow_their_frames(
    node_classes: Any, plain: Any, file: MotionFile
) -> None:
    """A prompt for each frame (a batched CONDITIONING): with the same prompt for all frames it
    changes nothing; another one for the last frame changes what that frame shows."""
    model = windowed(node_classes, moving(plain, file), 6, 2)
    _, negative = conditioning()

    def run(prompts: Tensor) -> Tensor:
        import comfy.sample
        import comfy.samplers

        from lamp.hosts.comfy.noise import shared_noise

        sigmas = torch.tensor([6.0, 0.03])  # a single step
        euler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model,
                shared_noise(video_latent(12), SEED, 0.2),
                5.0,
                euler,
                sigmas,
                [[prompts, {}]],
                negative,
                video_latent(12),
                disable_pbar=True,
            )

    same = text(1).repeat(12, 1, 1)
    other = torch.cat([same[:-1], text(9)])
    assert worst(run(same), run(text(1))) < 1e-5
    changed = (run(other) - run(same)).abs().amax((1, 2, 3))
    # Frame 12 lies in the last window only, with frames 8 to 11: the others cannot know of it.
    assert (changed[:7] == 0).all() and changed[11] > 0


@pytest.mark.slow
def test_a_second_windows_node_replaces_the_first(
    node_classes: Any, plain: Any, file: MotionFile
) -> None:
    model = moving(plain, file)
    twice = windowed(node_classes, windowed(node_classes, model, 4, 1), 6, 2)
    with torch.inference_mode():
        one = lamp_ksampler(windowed(node_classes, model, 6, 2), video_latent(12))
        assert torch.equal(lamp_ksampler(twice, video_latent(12)), one)


def test_invalid_inputs_of_the_windows_node_are_refused(
    node_classes: Any, plain: Any, file: MotionFile
) -> None:
    with pytest.raises(LampError, match="^LAMP Anchored Windows: .*LAMP motion"):
        windowed(node_classes, plain, 6, 2)
    with pytest.raises(LampError, match="^LAMP Anchored Windows: .*5"):
        windowed(node_classes, moving(plain, file), 6, 5)
    with pytest.raises(LampError, match="^LAMP Anchored Windows: .*3"):
        node_classes["LAMP_AnchoredWindows"].execute(moving(plain, file), 3, 1, loop=True)
