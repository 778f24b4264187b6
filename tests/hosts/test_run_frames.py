"""One prompt, hint, token, box or mask for each frame: in windows and extended videos."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import conditioning, ksampler, moving, worst
from benchmarks.samples.ecosystem import PATCHES, sample, still
from benchmarks.samples.tiny_models import text, video_latent
from benchmarks.samples.tiny_patches import tiny_control
from lamp.errors import LampError
from lamp.method.windows import Windows
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode", "no_hook_is_left"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]
LONG = 7


def unfolded(count: int) -> Callable[..., Any]:
    """An image token for each frame in cross-attention, placed by what AnimateDiff-Evolved tells:
    `count` tokens, the last one for all frames after."""
    tokens = torch.randn(count, 1, 32, generator=torch.Generator().manual_seed(3))

    def patch(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Any:
        frames = len(q) // len(options["cond_or_uncond"])
        told = options.get("ad_params")
        if told is not None and told["sub_idxs"] is not None:
            places = [min(place, count - 1) for place in told["sub_idxs"]]
            assert told["full_length"] >= len(places) == told["context_length"] == frames
        else:
            places = [min(place, count - 1) for place in range(frames)]
        more = tokens[places].repeat(len(options["cond_or_uncond"]), 1, 1).to(k)
        return q, torch.cat([k, more], 1), torch.cat([v, more], 1)

    return patch


def windowed(model: Any, length: int = 4, overlap: int = 1) -> Any:
    from lamp.hosts.comfy.windows import with_windows

    return with_windows(model, Windows(length, overlap))


def with_tokens(model: Any, count: int) -> Any:
    model = model.clone()
    model.set_model_attn2_patch(unfolded(count))
    return model


@pytest.mark.parametrize("count", [LONG, 3])
def test_patches_get_the_frame_indices_of_a_window(plain: Any, count: int) -> None:
    latent = video_latent(LONG)
    whole = sample(with_tokens(still(plain), count), samples=latent)
    pieces = sample(with_tokens(windowed(still(plain)), count), samples=latent)
    assert worst(pieces, whole) < 1e-5
    assert worst(sample(windowed(still(plain)), samples=latent), whole) > 1e-3


def gligen(plain: Any) -> Any:
    """The host's GLIGEN for the tiny UNet, with random weights, as CONDITIONING of two boxes."""
    from comfy.gligen import GatedSelfAttentionDense, Gligen, PositionNet

    generator = torch.Generator().manual_seed(11)
    blocks = []
    for name, part in plain.model.diffusion_model.named_modules():
        if name.endswith("transformer_blocks.0"):
            width = part.attn1.to_q.in_features
            blocks.append(GatedSelfAttentionDense(width, 32, 2, width // 2))
    made = Gligen(blocks, PositionNet(32, 32), 32)
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    import comfy.model_patcher

    loaded = comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))
    boxes = [(text(7, 1)[0], 4, 4, 0, 0), (text(8, 1)[0], 4, 4, 4, 4)]
    return [[text(1), {"gligen": ("position", loaded, boxes)}]]


def test_gligen_boxes_work_with_windows(plain: Any, file: MotionFile) -> None:
    positive, latent = gligen(plain), video_latent(LONG)
    whole = sample(still(plain), positive=positive, samples=latent)
    pieces = sample(windowed(still(plain)), positive=positive, samples=latent)
    assert worst(pieces, whole) < 1e-5
    assert worst(sample(still(plain), samples=latent), whole) > 1e-3
    moved = sample(windowed(moving(plain, file)), positive=positive, samples=latent)
    assert moved.isfinite().all()


def test_patches_that_read_attention_afterwards_are_refused_with_windows(
    plain: Any, file: MotionFile
) -> None:
    """Self-attention guidance; perturbed-attention guidance keeps nothing, and goes on."""
    latent = video_latent(LONG)
    with pytest.raises(LampError, match="SelfAttentionGuidance"):
        sample(PATCHES["SelfAttentionGuidance"](windowed(moving(plain, file))), samples=latent)
    short = PATCHES["SelfAttentionGuidance"](windowed(moving(plain, file), LONG, 1))
    assert sample(short, samples=latent).isfinite().all()  # a single window
    patch = PATCHES["PerturbedAttentionGuidance"]
    pieces = sample(patch(windowed(still(plain))), samples=latent)
    assert worst(pieces, sample(patch(still(plain)), samples=latent)) < 1e-5


def test_caches_by_prompt_keep_windows_apart(plain: Any, file: MotionFile) -> None:
    numbers: list[Any] = []

    def note(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        numbers.extend(args[-1]["uuids"])
        return executor(*args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    model = windowed(moving(plain, file))
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "note", note)
    sample(model, samples=video_latent(LONG), steps=1, cfg=1.0)
    assert len(set(numbers)) == len(numbers) == len(Windows(4, 1).frame_indices(LONG))


def extended(model: Any, positive: Any, clip: Tensor, **options: Any) -> Tensor:
    from lamp.hosts.comfy.extend import extend_video
    from lamp.method.adain import AdaINSchedule

    settings = {
        "seed": 3, "frames": 3, "times": 2, "hold": 0.0, "steps": 2, "cfg": 1.0,
        "sampler": "euler", "scheduler": "normal", "schedule": AdaINSchedule("off"),
    }  # fmt: skip
    return extend_video(
        model, positive, conditioning()[1], {"samples": clip}, **{**settings, **options}
    )["samples"]


def test_masks_per_frame_that_are_too_few_are_told(plain: Any, file: MotionFile) -> None:
    from lamp.method.masks import MotionMask

    model = moving(plain, file, motion_mask=MotionMask(torch.ones(4, 64, 64) / 2))
    with pytest.raises(LampError, match="4 masks for a video of 7 frames"):
        extended(model, conditioning()[0], torch.randn(3, 4, 8, 8), hold=1.0)


@pytest.mark.parametrize("hold", [0.5, 1.0])
def test_a_held_picture_stands_still_in_all_pieces(
    plain: Any, file: MotionFile, hold: float
) -> None:
    """The colours that each piece takes from frame 1 are those of its free part."""
    from lamp.method.adain import AdaINSchedule
    from lamp.method.masks import MotionMask

    mask = torch.zeros(64, 64)
    mask[:, :32] = 1.0
    model = moving(plain, file, motion_mask=MotionMask(mask))
    clip = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    clip[1:, ..., 4:] = clip[:1, ..., 4:]
    how = {"hold": hold, "schedule": AdaINSchedule("paper")}
    out = extended(model, conditioning()[0], clip, **how)
    assert worst(out[..., 5:], clip[:1, ..., 5:].expand(len(out), -1, -1, -1)) < 1e-6
    other = extended(model, conditioning()[0], clip, **{**how, "hold": 0.0})
    assert worst(out[3:, ..., :4], other[3:, ..., :4]) > 0.01


def changed_frames(run: Callable[[int | None], Tensor], total: int) -> list[list[int]]:
    """For each frame of a video of single pictures, those that its own thing changes."""
    usual = run(None)
    return [
        [i for i, (a, b) in enumerate(zip(run(n), usual, strict=True)) if worst(a, b) > 1e-6]
        for n in range(total)
    ]


def test_hint_i_steers_frame_i_of_an_extended_video(plain: Any) -> None:
    """3 frames that are there and 2 x 2 new ones; a frame carries on what its start has seen."""
    import nodes

    control, clip = tiny_control(plain), 4 * torch.randn(3, 4, 8, 8)
    generator = torch.Generator().manual_seed(4)
    pictures = torch.rand(LONG, 64, 64, 3, generator=generator)
    other = torch.rand(64, 64, 3, generator=generator)

    def run(changed: int | None) -> Tensor:
        hints = pictures.clone()
        if changed is not None:
            hints[changed] = other
        node = nodes.ControlNetApplyAdvanced()
        positive, _ = node.apply_controlnet(*conditioning(), control, hints, 1.0, 0.0, 1.0)
        return extended(still(plain), positive, clip)

    # Frames 1 to 3 are given. The second piece starts from frame 5, so it shows frame 5's change
    # as long as pieces share nothing else: here frames are single pictures, and it does not.
    assert changed_frames(run, LONG) == [[], [], [], [3], [4], [5], [6]]


def test_prompt_i_and_token_i_steer_frame_i_of_an_extended_video(plain: Any) -> None:
    clip = 4 * torch.randn(3, 4, 8, 8)
    texts = torch.cat([text(20 + i) for i in range(LONG)])

    def prompts(changed: int | None) -> Tensor:
        given = texts.clone()
        if changed is not None:
            given[changed] = text(40)[0]
        return extended(still(plain), [[given, {}]], clip)

    assert changed_frames(prompts, LONG) == [[], [], [], [3], [4], [5], [6]]
    in_places = extended(with_tokens(still(plain), LONG), conditioning()[0], clip)
    anew = extended(with_tokens(still(plain), 1), conditioning()[0], clip)
    assert worst(in_places[3:], anew[3:]) > 1e-3
    windows = windowed(with_tokens(still(plain), LONG), 2, 0)
    assert worst(extended(windows, conditioning()[0], clip), in_places) < 1e-5


def test_masks_for_each_frame_count_those_of_the_whole_extended_video(
    plain: Any, file: MotionFile
) -> None:
    from lamp.method.masks import MotionMask

    clip, masks = 4 * torch.randn(3, 4, 8, 8), torch.ones(LONG, 64, 64)
    masks[4, :, 32:] = 0.0
    model = moving(plain, file, motion_mask=MotionMask(masks))
    out = extended(model, conditioning()[0], clip)
    assert worst(out[4][..., 5:], out[2][..., 5:]) < 1e-4  # held to the piece's first frame
    assert worst(out[3][..., 5:], out[2][..., 5:]) > 0.05
    with pytest.raises(LampError, match="3 masks.*7"):
        extended(moving(plain, file, motion_mask=MotionMask(masks[2:5])), conditioning()[0], clip)


@pytest.mark.parametrize(
    ("trained", "window", "told"), [(0, 0, 0), (2, 0, 1), (3, 0, 0), (2, 4, 0), (1, 4, 1)]
)
def test_many_more_frames_than_the_motion_was_trained_on_are_told_once(
    plain: Any,
    file: MotionFile,
    monkeypatch: pytest.MonkeyPatch,
    trained: int,
    window: int,
    told: int,
) -> None:
    """Six frames at once, or in windows of four; below the node that samples."""
    from comfy_execution.utils import CurrentNodeContext

    said: list[tuple[str, str]] = []
    instance = SimpleNamespace(send_progress_text=lambda text, node: said.append((node, text)))
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", server)
    model = moving(plain, file, trained_frames=trained)
    with CurrentNodeContext(f"prompt {trained} {window}", "7"):
        for _ in range(2):  # as LAMP Extend Video does
            ksampler(windowed(model, window) if window else model)
    assert len(said) == told
    for node, line in said:
        assert node == "7" and f" {window or 6} frames" in line and f" {trained}" in line
