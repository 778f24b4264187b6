"""The cases about whole models: forward passes, sampling, inversion and editing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.sampling import with_first_frame

from .fixtures import (
    Fixture,
    Measure,
    each_video,
    expand,
    largest,
    of_scale,
    relative,
    to_frames,
    to_video,
    worst_of,
)
from .hosts import COND, UNCOND, DiffusersModel, DoubleModel, Job, Model, Run, find_module

Figures = dict[str, Tensor]

FORWARD = 2e-5
SAMPLING = 1e-4
# One value of fp32 noise may come out in its last bits otherwise on another processor.
SAME_NOISE = 1e-6
EDITING_GUIDANCE = 12.5  # of the official scripts


def forward(model: Model, fixture: Fixture) -> Iterator[Measure]:
    """One pass through the UNet, and the activations on the way where they are recorded."""
    for case in sorted(key.removesuffix(".latents") for key in fixture.keys if ".latents" in key):
        given = fixture.prefixed(case)
        motion = model.motion(_overwritten(model.learned, case))
        ours, activations = _predict(model, motion, given)
        errors = {"out": relative(ours, given["out"])}
        for name, activation in activations.items():
            errors[name] = relative(activation, given[f"act.{name}"])
        yield worst_of(case, errors, FORWARD)


def _overwritten(learned: dict[str, Tensor], case: str) -> dict[str, Tensor]:
    """The motion of a case: `zero_init` is the official code's fresh one, whose attn_temp keeps a
    random bias, and `temporal_off` has that at zero as well."""
    if "zero_init" not in case and "temporal_off" not in case:
        return learned
    silent = [".conv1d.", ".conv_gate.", ".attn_temp.to_out.0.weight", ".norm_temp.bias"]
    if "temporal_off" in case:
        silent.append(".attn_temp.to_out.0.bias")
    changed = {}
    for name, value in learned.items():
        if ".norm_temp.weight" in name:
            value = torch.ones_like(value)
        elif any(part in name for part in silent):
            value = torch.zeros_like(value)
        changed[name] = value
    return changed


@torch.no_grad()
def _predict(
    model: Model, motion: Motion, given: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The UNet's answer as `b c f h w`, and the recorded activations in the fixture's layout."""
    videos, _, frames = given["latents"].shape[:3]
    unet, kept = model.host.unet, {}

    def keep(name: str, shape: torch.Size) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            out = out if isinstance(out, Tensor) else out[0]
            out = out if out.ndim == 5 or len(shape) < 5 else to_video(out, videos)
            # The time embedding is one row a video there and one a frame here.
            kept[name] = out[:: len(out) // shape[0]] if len(shape) < 5 else out

        return hook

    with ExitStack() as stack:
        stack.enter_context(motion.attached(unet, FrameLayout(frames, videos)))
        for key in (key for key in given if key.startswith("act.")):
            name = key.removeprefix("act.")
            if (module := find_module(unet, name)) is not None:
                handle = module.register_forward_hook(keep(name, given[key].shape))
                stack.callback(handle.remove)
        timesteps = each_video(given["timestep"], videos)
        text = expand(given["text"], videos)
        dtype = next(motion.parameters()).dtype
        latents = to_frames(given["latents"]).to(dtype)
        out = model.host.predict(latents, timesteps, text.to(dtype))
    return to_video(out, videos), kept


def sample(model: Model, fixture: Fixture) -> Iterator[Measure]:
    """A whole sampling run: starting latents, the UNet's calls, every step, the result."""
    given, info = fixture.tensors, fixture.info
    videos, channels, frames, height, width = given["noise"].shape
    if (seed := info.get("generator_seed")) is not None:
        drawn = draw_noise(frames, channels, height, width, seed, videos)
        error = of_scale(to_video(drawn, videos), given["noise"])
        yield Measure("noise of the seed", error, SAME_NOISE)
    noise = share_noise(to_frames(given["noise"]), frames=frames)
    job = _job(fixture, given, noise, float(info["guidance"]))
    yield from _compare_run(model, fixture, given, job)


def inversion(model: Model, fixture: Fixture) -> Iterator[Measure]:
    """All frames of a clip up to noise, and, where it is recorded, back with an edited frame 1."""
    given = fixture.tensors
    video = given["video_latent"]
    videos, steps = len(video), given["timesteps"].numel()
    text = expand(given["uncond"], videos)
    states, calls = model.invert(to_frames(video), text, steps)
    visited = torch.tensor([call.timestep for call in reversed(calls)])
    yield Measure("inversion timesteps", largest(visited, given["timesteps"].flatten()), 0.0)
    recorded = given["all"].reshape(steps + 1, *video.shape)[1:]
    rounding = Rounding(
        model,
        fixture,
        lambda other: _inverted(other.invert(to_frames(video), text, steps)[0], videos),
    )
    ours = _inverted(states, videos)
    yield rounding.compare("inversion steps", ours, _by_step(list(recorded)))
    yield rounding.compare("inverted", ours, {"last": given["last"]})
    if edit := fixture.prefixed("edit"):
        # From the recorded noise, so that sampling is held to its own errors alone.
        guidance = float(fixture.info.get("guidance", EDITING_GUIDANCE))
        job = _job(fixture, edit, to_frames(given["last"]), guidance)
        yield from _compare_run(model, fixture, edit, job, "edit: ")


def _inverted(states: list[Tensor], videos: int) -> Figures:
    clips = [to_video(state, videos) for state in states]
    return _by_step(clips) | {"last": clips[-1]}


def _by_step(states: list[Tensor]) -> Figures:
    return {f"step {i}": state for i, state in enumerate(states)}


def _job(fixture: Fixture, run: dict[str, Tensor], noise: Tensor, guidance: float) -> Job:
    """The sampling run of which `run` holds the figures; the rest is the fixture's own."""
    given, first = fixture.tensors, run["first_frame_latents"][:, :, 0]
    steps = fixture.info.get("num_inference_steps", given["timesteps"].numel())
    cond, uncond = (expand(given[name], len(first)) for name in ("cond", "uncond"))
    return Job(noise, first, cond, uncond, steps, guidance)


def _compare_run(
    model: Model, fixture: Fixture, given: Figures, job: Job, prefix: str = ""
) -> Iterator[Measure]:
    run, videos = model.sample(job), len(job.first)
    calls = sorted(key for key in given if key.startswith("unet_"))
    ours = _sampled(run, calls, videos)
    rounding = Rounding(model, fixture, lambda other: _sampled(other.sample(job), calls, videos))
    started = to_video(with_first_frame(job.noise, job.first), videos)
    error = of_scale(started, given["init_latents"])
    yield Measure(f"{prefix}starting latents", error, SAME_NOISE)
    if "timesteps" in given:
        visited = torch.tensor([call.timestep for call in run.calls])
        yield Measure("timesteps", largest(visited, given["timesteps"].flatten()), 0.0)
    if calls:
        yield rounding.compare("UNet calls", ours, {key: given[key] for key in calls})
    expected = given["steps"].reshape(len(run.states), *given["final"].shape)
    yield rounding.compare(f"{prefix}steps", ours, _by_step(list(expected)))
    yield rounding.compare(f"{prefix}final", ours, {"final": given["final"]})
    kept = of_scale(ours["final"][:, :, :1], given["first_frame_latents"])
    yield Measure(f"{prefix}frame 1 kept", kept, SAME_NOISE)


def _sampled(run: Run, calls: list[str], videos: int) -> Figures:
    """What is compared of a run: UNet calls by their keys, the states, the result."""
    figures = _by_step([to_video(state, videos) for state in run.states])
    figures["final"] = to_video(run.final, videos)
    for key in calls:
        call = run.calls[int(key.split(".")[1])]
        halves = call.seen if key.startswith("unet_in") else call.said
        parts = [to_video(halves[k], videos) for k in (UNCOND, COND) if k in halves]
        figures[key] = torch.cat(parts)
    return figures


class Rounding:
    """How far fp32 is from float64 in the figures of a run.

    Each AdaIN step divides by deviations of its input and so amplifies what fp32 rounded before:
    on some models the published code is 4e-2 off its own float64 at last. Two correct programs in
    fp32 differ by as much, so where a bound is exceeded, both precisions are run here, and the
    figure is held to three times their distance. The recorded figures play no part in that.

    Args:
        run: the figures of the same run by another model.
    """

    def __init__(self, model: Model, fixture: Fixture, run: Callable[[Model], Figures]) -> None:
        self._double = isinstance(model, DoubleModel)
        self._fixture, self._run = fixture, run

    @cached_property
    def _floors(self) -> dict[str, float]:
        model = Fixture(self._fixture.model_path)
        single, double = (self._run(kind(model)) for kind in (DiffusersModel, DoubleModel))
        return {key: of_scale(single[key], double[key]) for key in single}

    def compare(self, group: str, ours: Figures, theirs: Figures) -> Measure:
        """The worst of some figures; in float64 the rounding of the recorded ones is told, too."""
        errors = {key: of_scale(ours[key], value) for key, value in theirs.items()}
        exact = any(value.dtype == torch.float64 for value in theirs.values())
        holds = all(error <= SAMPLING for error in errors.values())
        if exact or (holds and not self._double):
            return worst_of(group, errors, SAMPLING)
        bounds = {key: max(SAMPLING, 3 * self._floors[key]) for key in errors}
        worst = max(errors, key=lambda key: _ratio(errors[key], bounds[key]))
        floor = self._floors[worst]
        return Measure(
            group, errors[worst], bounds[worst], f"{worst}, where fp32 is {floor:.1e} off float64"
        )


def _ratio(error: float, bound: float) -> float:
    return math.inf if error != error else error / bound
