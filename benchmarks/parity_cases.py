"""The cases about whole models: forward passes, sampling, inversion and editing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lamp.layout import FrameLayout
from lamp.motion import Motion
from lamp.noise import draw_noise, share_noise
from lamp.sampling import with_first_frame

from .parity_fixtures import (
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
from .parity_hosts import COND, UNCOND, Job, Model, Run, find_module

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
        out = model.host.predict(to_frames(given["latents"]), timesteps, text)
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
    yield from _compare_run(model.sample(job), given, job)


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
    yield _worst_state("inversion steps", states, recorded, videos)
    last = to_video(states[-1], videos)
    yield Measure("inverted", of_scale(last, given["last"]), SAMPLING)
    if edit := fixture.prefixed("edit"):
        # From the recorded noise, so that sampling is held to its own errors alone.
        guidance = float(fixture.info.get("guidance", EDITING_GUIDANCE))
        job = _job(fixture, edit, to_frames(given["last"]), guidance)
        yield from _compare_run(model.sample(job), edit, job, "edit: ")


def _job(fixture: Fixture, run: dict[str, Tensor], noise: Tensor, guidance: float) -> Job:
    """The sampling run of which `run` holds the figures; the rest is the fixture's own."""
    given, first = fixture.tensors, run["first_frame_latents"][:, :, 0]
    steps = fixture.info.get("num_inference_steps", given["timesteps"].numel())
    cond, uncond = (expand(given[name], len(first)) for name in ("cond", "uncond"))
    return Job(noise, first, cond, uncond, steps, guidance)


def _compare_run(
    run: Run, given: dict[str, Tensor], job: Job, prefix: str = ""
) -> Iterator[Measure]:
    videos = len(job.first)
    started = to_video(with_first_frame(job.noise, job.first), videos)
    error = of_scale(started, given["init_latents"])
    yield Measure(f"{prefix}starting latents", error, SAME_NOISE)
    if "timesteps" in given:
        visited = torch.tensor([call.timestep for call in run.calls])
        yield Measure("timesteps", largest(visited, given["timesteps"].flatten()), 0.0)
    errors = {}
    for key in sorted(key for key in given if key.startswith("unet_")):
        call = run.calls[int(key.split(".")[1])]
        halves = call.seen if key.startswith("unet_in") else call.said
        ours = torch.cat([to_video(halves[k], videos) for k in (UNCOND, COND) if k in halves])
        errors[key] = of_scale(ours, given[key])
    if errors:
        yield worst_of("UNet calls", errors, SAMPLING)
    expected = given["steps"].reshape(len(run.states), *given["final"].shape)
    yield _worst_state(f"{prefix}steps", run.states, expected, videos)
    final = to_video(run.final, videos)
    yield Measure(f"{prefix}final", of_scale(final, given["final"]), SAMPLING)
    kept = of_scale(final[:, :, :1], given["first_frame_latents"])
    yield Measure(f"{prefix}frame 1 kept", kept, SAME_NOISE)


def _worst_state(name: str, states: list[Tensor], recorded: Tensor, videos: int) -> Measure:
    errors = {
        f"step {i}": of_scale(to_video(ours, videos), theirs)
        for i, (ours, theirs) in enumerate(zip(states, recorded, strict=True))
    }
    return worst_of(name, errors, SAMPLING)
