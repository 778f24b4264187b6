"""Comparisons of whole models: forward passes, sampling, inversion and editing."""

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
# fp32 noise may differ in its last bits on another processor.
SAME_NOISE = 1e-6
EDITING_GUIDANCE = 12.5  # of the official scripts


def forward(model: Model, fixture: Fixture) -> Iterator[Measure]:
    """One UNet call, with the recorded intermediate activations."""
    for case in fixture.cases(".latents"):
        given = fixture.prefixed(case)
        ours, activations = _predict(model, model.motion(_silenced(model.learned, case)), given)
        errors = {"out": relative(ours, given["out"])}
        for name, activation in activations.items():
            errors[name] = relative(activation, given[f"act.{name}"])
        yield worst_of(case, errors, FORWARD)


def _silenced(learned: Figures, case: str) -> Figures:
    """The motion of a case: `zero_init` is the official code's initial one, whose attn_temp has a
    random bias; `temporal_off` has a zero bias as well."""
    if "zero_init" not in case and "temporal_off" not in case:
        return learned
    silent = [".conv1d.", ".conv_gate.", ".attn_temp.to_out.0.weight", ".norm_temp.bias"]
    silent += [".attn_temp.to_out.0.bias"] if "temporal_off" in case else []
    return {
        name: torch.ones_like(value) if ".norm_temp.weight" in name
        else torch.zeros_like(value) if any(part in name for part in silent)
        else value
        for name, value in learned.items()
    }  # fmt: skip


@torch.no_grad()
def _predict(model: Model, motion: Motion, given: Figures) -> tuple[Tensor, Figures]:
    """The UNet's output `b c f h w`, and the recorded activations in the fixture's layout."""
    videos, _, frames = given["latents"].shape[:3]
    unet, kept = model.host.unet, {}

    def keep(name: str, shape: torch.Size) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> None:
            out = out if isinstance(out, Tensor) else out[0]
            out = out if out.ndim == 5 or len(shape) < 5 else to_video(out, videos)
            # The time embedding has one row per video there and one per frame here.
            kept[name] = out[:: len(out) // shape[0]] if len(shape) < 5 else out

        return hook

    with ExitStack() as stack:
        stack.enter_context(motion.attached(unet, FrameLayout(frames, videos)))
        for name in (key.removeprefix("act.") for key in given if key.startswith("act.")):
            if (module := find_module(unet, name)) is not None:
                handle = module.register_forward_hook(keep(name, given[f"act.{name}"].shape))
                stack.callback(handle.remove)
        times = given["timestep"].reshape(-1)
        dtype = next(motion.parameters()).dtype
        latents, text = to_frames(given["latents"]), expand(given["text"], videos)
        times = times.expand(videos) if len(times) == 1 else times
        out = model.host.predict(latents.to(dtype), times, text.to(dtype))
    return to_video(out, videos), kept


def sample(model: Model, fixture: Fixture) -> Iterator[Measure]:
    """A whole sampling run: initial latents, UNet calls, every step, the result."""
    given, info = fixture.tensors, fixture.info
    videos, channels, frames, height, width = given["noise"].shape
    if (seed := info.get("generator_seed")) is not None:
        drawn = to_video(draw_noise(frames, channels, height, width, seed, videos), videos)
        yield Measure("noise of the seed", of_scale(drawn, given["noise"]), SAME_NOISE)
    noise = share_noise(to_frames(given["noise"]), frames=frames)
    job = _job(fixture, given, noise, float(info["guidance"]))
    yield from _compare_run(model, fixture, given, job)


def inversion(model: Model, fixture: Fixture) -> Iterator[Measure]:
    """DDIM inversion of a clip and, where it is recorded, sampling from an edited first frame."""
    given, video = fixture.tensors, fixture.tensors["video_latent"]
    videos, steps = len(video), given["timesteps"].numel()
    text = expand(given["uncond"], videos)
    job = Job(to_frames(video), video[:, :, 0], text, text, steps)
    run = model.invert(job)
    visited = torch.tensor([call.timestep for call in reversed(run.calls)])
    yield Measure("inversion timesteps", largest(visited, given["timesteps"].flatten()), 0.0)

    figures: Any = lambda run: _figures(run, videos, "last")  # noqa: E731
    rounding = Rounding(model, fixture, lambda other: figures(other.invert(job)))
    recorded = given["all"].reshape(steps + 1, *video.shape)[1:]
    yield rounding.compare("inversion steps", figures(run), _by_step(recorded))
    yield rounding.compare("inverted", figures(run), {"last": given["last"]})
    if edit := fixture.prefixed("edit"):
        # From the recorded noise, so that errors of the inversion do not add up here.
        guidance = float(fixture.info.get("guidance", EDITING_GUIDANCE))
        job = _job(fixture, edit, to_frames(given["last"]), guidance)
        yield from _compare_run(model, fixture, edit, job, "edit: ")


def _by_step(states: Any) -> Figures:
    return {f"step {i}": state for i, state in enumerate(states)}


def _job(fixture: Fixture, run: Figures, noise: Tensor, guidance: float) -> Job:
    """The sampling run whose figures are `run`; all else comes from the fixture."""
    given, first = fixture.tensors, run["first_frame_latents"][:, :, 0]
    steps = fixture.info.get("num_inference_steps", given["timesteps"].numel())
    cond, uncond = (expand(given[name], len(first)) for name in ("cond", "uncond"))
    return Job(noise, first, cond, uncond, steps, guidance)


def _compare_run(
    model: Model, fixture: Fixture, given: Figures, job: Job, prefix: str = ""
) -> Iterator[Measure]:
    run, videos = model.sample(job), len(job.first)
    calls = sorted(key for key in given if key.startswith("unet_"))
    figures: Any = lambda run: _figures(run, videos, "final", calls)  # noqa: E731
    ours = figures(run)
    rounding = Rounding(model, fixture, lambda other: figures(other.sample(job)))
    started = to_video(with_first_frame(job.latents, job.first), videos)
    error = of_scale(started, given["init_latents"])
    yield Measure(f"{prefix}starting latents", error, SAME_NOISE)
    if "timesteps" in given:
        visited = torch.tensor([call.timestep for call in run.calls])
        yield Measure("timesteps", largest(visited, given["timesteps"].flatten()), 0.0)
    if calls:
        yield rounding.compare("UNet calls", ours, {key: given[key] for key in calls})
    expected = given["steps"].reshape(len(run.states), *given["final"].shape)
    yield rounding.compare(f"{prefix}steps", ours, _by_step(expected))
    yield rounding.compare(f"{prefix}final", ours, {"final": given["final"]})
    kept = of_scale(ours["final"][:, :, :1], given["first_frame_latents"])
    yield Measure(f"{prefix}frame 1 kept", kept, SAME_NOISE)


def _figures(run: Run, videos: int, last: str, calls: list[str] | None = None) -> Figures:
    """The compared figures of a run: states by step, the result as `last`, UNet calls by key."""
    figures = _by_step(to_video(state, videos) for state in run.states)
    figures[last] = to_video(run.final, videos)
    for key in calls or ():
        call = run.calls[int(key.split(".")[1])]
        halves = call.seen if key.startswith("unet_in") else call.said
        parts = [to_video(halves[k], videos) for k in (UNCOND, COND) if k in halves]
        figures[key] = torch.cat(parts)
    return figures


class Rounding:
    """The distance of fp32 from float64 in the figures of a run, computed on demand.

    Each AdaIN step divides by standard deviations and so amplifies earlier rounding: on some
    models the official code ends 4e-2 off its own float64 result, and two correct fp32 programs
    differ by as much. Where a figure exceeds its bound, it is therefore held to three times that
    distance. The recorded figures are not used to compute it.

    Args:
        run: gives the figures of the same run on another model.
    """

    def __init__(self, model: Model, fixture: Fixture, run: Callable[[Model], Any]) -> None:
        self._double = isinstance(model, DoubleModel)
        self._fixture, self._run = fixture, run

    @cached_property
    def both(self) -> tuple[Any, Any]:
        """The figures in fp32 and in float64."""
        model = Fixture(self._fixture.model_path)
        return self._run(DiffusersModel(model)), self._run(DoubleModel(model))

    @cached_property
    def _floors(self) -> dict[str, float]:
        single, double = self.both
        return {key: of_scale(single[key], double[key]) for key in single}

    def compare(self, group: str, ours: Figures, theirs: Figures) -> Measure:
        """The worst of some figures; a run in float64 always shows the distance of fp32."""
        errors = {key: of_scale(ours[key], value) for key, value in theirs.items()}
        exact = any(value.dtype == torch.float64 for value in theirs.values())
        holds = all(error <= SAMPLING for error in errors.values())
        if exact or (holds and not self._double):
            return worst_of(group, errors, SAMPLING)
        bounds = {key: max(SAMPLING, 3 * self._floors[key]) for key in errors}
        used = {k: math.inf if e != e else e / bounds[k] for k, e in errors.items()}
        worst = max(used, key=lambda key: used[key])
        detail = f"{worst}, where fp32 is {self._floors[worst]:.1e} off float64"
        return Measure(group, errors[worst], bounds[worst], detail)
