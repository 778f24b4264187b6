"""Model calls that other nodes split, reorder or bypass: correct, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.comfy_runs import (
    advanced,
    count_hooks,
    lamp_ksampler,
    levels,
    moving,
    sampler,
    worst,
)
from benchmarks.samples.ecosystem import FRAMES, Patch, sample, still
from benchmarks.samples.tiny_models import text, video_latent
from lamp.errors import LampError
from lamp.motion_file.file import MotionFile

pytestmark = [
    pytest.mark.usefixtures("comfy", "in_inference_mode", "no_hook_is_left"),
    pytest.mark.slow,  # many of them
    pytest.mark.shallow,
]


def wrapped(model: Any, function: Callable[..., Tensor]) -> Any:
    model = model.clone()
    model.set_model_unet_function_wrapper(function)
    return model


# --- tiles ----------------------------------------------------------------------------------------


def tiled(batch: int, order: str = "tile first") -> Callable[..., Tensor]:
    """Four tiles of a picture, `batch` of them in one call, as tiling packs show them."""

    def call(unet: Any, args: dict[str, Any]) -> Tensor:
        x, rest = args["input"], dict(args["c"])
        half = (x.shape[2] // 2, x.shape[3] // 2)
        tiles = [
            x[..., r : r + half[0], c : c + half[1]] for r in (0, half[0]) for c in (0, half[1])
        ]
        text = rest.pop("c_crossattn")
        outs: list[Tensor] = []
        for begin in range(0, 4, batch):
            group = tiles[begin : begin + batch]
            if order == "tile first":
                rows, merge = torch.cat(group), len(group)
                told = text.repeat(merge, 1, 1)
            else:
                rows, merge = torch.stack(group, 1).flatten(0, 1), len(group)
                told = text.repeat_interleave(merge, 0)
            time = args["timestep"][:1].expand(len(rows))
            out = unet(rows, time, c_crossattn=told, **rest)
            parts = (
                out.chunk(merge)
                if order == "tile first"
                else out.unflatten(0, (-1, merge)).unbind(1)
            )
            outs += list(parts)
        return torch.cat([torch.cat(outs[:2], 3), torch.cat(outs[2:], 3)], 2)

    return call


@pytest.mark.parametrize("batch", [2, 4])
def test_a_batch_of_tiles_is_as_many_videos(plain: Any, file: MotionFile, batch: int) -> None:
    latent = video_latent(FRAMES, 16, 16)
    for model in (moving(plain, file), still(plain)):
        one = sample(wrapped(model, tiled(1)), samples=latent)
        assert worst(sample(wrapped(model, tiled(batch)), samples=latent), one) < 1e-5
    alone = sample(wrapped(plain, tiled(batch)), samples=latent)
    assert worst(sample(wrapped(still(plain), tiled(batch)), samples=latent)[1:], alone[1:]) < 1e-5


def test_tiles_that_are_mixed_among_the_frames_are_refused(plain: Any, file: MotionFile) -> None:
    model = wrapped(moving(plain, file), tiled(2, "frame first"))
    with pytest.raises(LampError, match="Image 1?[0-9] of"):
        sample(model, samples=video_latent(FRAMES, 16, 16))


# --- other batches --------------------------------------------------------------------------------


def chosen(rows: list[int], chunked: bool) -> Callable[..., Tensor]:
    """Some frames of each half of the batch only, as context windows show them."""

    def call(unet: Any, args: dict[str, Any]) -> Tensor:
        x, rest = args["input"], dict(args["c"])
        halves = len(args["cond_or_uncond"])
        frames = len(x) // halves
        index = torch.tensor([half * frames + row for half in range(halves) for row in rows])
        text = rest.pop("c_crossattn")
        out = x.clone()
        groups = index.split(len(rows)) if chunked else (index,)
        for group in groups:
            out[group] = unet(x[group], args["timestep"][group], c_crossattn=text[group], **rest)
        return out

    return call


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("rows", [[0, 1], [1, 2, 3], [0, 1, 2]])
def test_pieces_of_the_video_are_refused(
    plain: Any, file: MotionFile, rows: list[int], chunked: bool
) -> None:
    with pytest.raises(LampError, match="LAMP Anchored Windows|Image [0-9]+ of"):
        sample(wrapped(moving(plain, file), chosen(rows, chunked)))


def test_two_windows_in_a_batch_of_the_usual_size_are_refused(plain: Any, file: MotionFile) -> None:
    """Frames 1 2 and 3 4 of either half, one half a call: as many images as the video has."""
    order = [0, 2, 1, 3]
    with pytest.raises(LampError, match="Image 1?[0-9] of"):
        sample(wrapped(moving(plain, file), chosen(order, True)))


def test_frames_that_change_places_in_a_later_step_are_refused(
    plain: Any, file: MotionFile
) -> None:
    calls = []

    def call(unet: Any, args: dict[str, Any]) -> Tensor:
        calls.append(1)
        x = args["input"]
        if len(calls) > 1:
            order = [0, *range(FRAMES - 1, 0, -1)]
            x = x[[half * FRAMES + row for half in range(len(x) // FRAMES) for row in order]]
        return unet(x, args["timestep"], **args["c"])

    with pytest.raises(LampError, match="Image 1?[0-9] of"):
        sample(wrapped(moving(plain, file), call), steps=3)
    assert len(calls) == 2


@pytest.mark.parametrize("halves", ["apart", "swapped"])
def test_prompts_in_separate_calls_work(plain: Any, file: MotionFile, halves: str) -> None:
    def call(unet: Any, args: dict[str, Any]) -> Tensor:
        x, rest = args["input"], dict(args["c"])
        text, outs = rest.pop("c_crossattn"), {}
        parts = list(torch.arange(len(x)).chunk(len(args["cond_or_uncond"])))
        for rows in parts if halves == "apart" else parts[::-1]:
            outs[int(rows[0])] = unet(
                x[rows], args["timestep"][rows], c_crossattn=text[rows], **rest
            )
        return torch.cat([outs[int(rows[0])] for rows in parts])

    model = moving(plain, file)
    assert worst(sample(wrapped(model, call)), sample(model)) < 1e-5


# --- around the UNet ------------------------------------------------------------------------------


def test_blocks_that_another_node_runs_by_itself_are_refused(plain: Any, file: MotionFile) -> None:
    """From the first step on, or from a later one, as a cache of deep features does it."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import timestep_embedding

    for whole_steps in (0, 1):
        calls = []

        def call(
            unet: Any, args: dict[str, Any], calls: list[int] = calls, whole: int = whole_steps
        ) -> Tensor:
            calls.append(1)
            if len(calls) <= whole:
                return unet(args["input"], args["timestep"], **args["c"])
            network = plain.model.diffusion_model
            time = torch.full((len(args["input"]),), 5.0)
            emb = network.time_embed(timestep_embedding(time, network.model_channels))
            h = network.input_blocks[0][0](args["input"])
            h = network.input_blocks[1][0](h, emb)
            return args["input"] + 0 * h.mean()

        with pytest.raises(LampError, match="another node|Another node"):
            sample(wrapped(moving(plain, file), call))


def test_an_engine_in_place_of_the_unet_is_refused(plain: Any, file: MotionFile) -> None:
    with pytest.raises(LampError, match="another node|Another node"):
        sample(wrapped(moving(plain, file), lambda unet, args: args["input"] * 0.5))


CACHES = {
    "EasyCacheNode": {"reuse_threshold": 0.0, "start_percent": 0.0, "end_percent": 1.0},
    "LazyCacheNode": {"reuse_threshold": 0.0, "start_percent": 0.0, "end_percent": 1.0},
}


@pytest.mark.parametrize("kind", CACHES)
def test_caches_without_skipped_calls_change_nothing(
    plain: Any, file: MotionFile, kind: str
) -> None:
    pytest.importorskip("comfy_extras.nodes_easycache")
    cache = Patch("easycache", kind, {**CACHES[kind], "verbose": False})
    model = moving(plain, file)
    for cached in (cache(model), moving(cache(plain), file)):
        assert torch.equal(sample(cached, steps=4), sample(model, steps=4))


@pytest.mark.parametrize("threshold", [0.2, 0.5, 3.0])
@pytest.mark.parametrize("kind", CACHES)
def test_caches_skip_calls_before_and_after_the_motion_alike(
    plain: Any, file: MotionFile, kind: str, threshold: float
) -> None:
    """They compare inputs with the clean frame 1, which is its own prediction in skipped steps."""
    pytest.importorskip("comfy_extras.nodes_easycache")
    settings = {**CACHES[kind], "reuse_threshold": threshold, "verbose": False}
    cache = Patch("easycache", kind, settings)
    orders = (cache(moving(plain, file)), moving(cache(plain), file))
    videos = [sample(model, steps=10) for model in orders]
    assert videos[0].isfinite().all() and torch.equal(*videos)
    for model in orders:
        predicted = advanced(model, sampler(), levels(model, steps=10), output=1)
        assert worst(predicted[:1], video_latent()[:1]) < 1e-5


def test_a_model_that_is_called_without_a_sampler_is_refused(plain: Any, file: MotionFile) -> None:
    model = moving(plain, file)
    x, context = video_latent(), text(1).repeat(6, 1, 1)
    options = {"wrappers": model.wrappers}
    with pytest.raises(LampError, match="LAMP KSampler"):
        model.model.apply_model(x, torch.ones(6), c_crossattn=context, transformer_options=options)


def test_the_lamp_sampler_and_the_stock_one_check_alike(plain: Any, file: MotionFile) -> None:
    with pytest.raises(LampError):
        lamp_ksampler(wrapped(moving(plain, file), chosen([1, 2], False)))


# --- layers that other code replaces during a run -------------------------------------------------


def test_the_motion_acts_on_whatever_replaces_a_layers_function_during_a_run(
    plain: Any, file: MotionFile
) -> None:
    """ComfyUI ejects and injects patches such as bypass LoRAs when it goes from prompt to prompt,
    which sets the function of a layer to the layer's own and back."""
    layers = [m for n, m in plain.model.diffusion_model.named_modules() if n.endswith("attn1.to_q")]
    own = {layer: layer.forward for layer in layers}
    calls = []

    def stronger(layer: Any) -> Callable[..., Tensor]:
        return lambda x: 20 * own[layer](x)

    def inject(unet: Any, args: dict[str, Any]) -> Tensor:
        for layer in layers:
            layer.forward = stronger(layer) if len(calls) % 2 else own[layer]
        calls.append(args["timestep"])
        return unet(args["input"], args["timestep"], **args["c"])

    def before(unet: Any, args: dict[str, Any]) -> Tensor:
        """The same weights, as patched before the run."""
        for layer in layers:
            layer.weight.data = weights[layer] * (20 if len(calls) % 2 else 1)
        calls.append(args["timestep"])
        return unet(args["input"], args["timestep"], **args["c"])

    weights = {layer: layer.weight.data.clone() for layer in layers}
    model = moving(plain, file)
    out = sample(wrapped(model, inject), steps=3)
    for layer in layers:
        vars(layer).pop("forward", None)
    assert len(calls) == 3
    calls.clear()
    expected = sample(wrapped(model, before), steps=3)
    for layer in layers:
        layer.weight.data = weights[layer]
    assert worst(out, expected) < 1e-5
    assert worst(out, sample(model, steps=3)) > 1e-3


def test_a_function_that_other_code_hides_for_a_call_is_not_left_behind(
    plain: Any, file: MotionFile
) -> None:
    """As code that wraps layers around a call and puts back what was there."""
    layers = [m for n, m in plain.model.diffusion_model.named_modules() if n.endswith("attn1.to_q")]
    calls = []

    def around(unet: Any, args: dict[str, Any]) -> Tensor:
        calls.append(1)
        there = {layer: layer.forward for layer in layers}
        had = {layer: "forward" in vars(layer) for layer in layers}
        if len(calls) > 1:
            for layer in layers:
                layer.forward = lambda x, own=there[layer]: own(x)
        try:
            return unet(args["input"], args["timestep"], **args["c"])
        finally:
            for layer in layers if len(calls) > 1 else []:
                if had[layer]:
                    layer.forward = there[layer]
                else:
                    del layer.forward

    model = moving(plain, file)
    out = sample(wrapped(model, around), steps=4)
    assert len(calls) == 4 and count_hooks(plain) == 0
    assert worst(out, sample(model, steps=4)) < 1e-5
