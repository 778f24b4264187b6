"""The models of the fixtures in both hosts, sampled the way each host's users sample."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lamp.method.adain import AdaINSchedule
from lamp.method.architecture import canonical_names, map_unet
from lamp.method.host import Host
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import MotionFile

from .fixtures import Fixture, split_official

# ComfyUI's numbers for the two halves of guidance; the official code puts UNCOND first.
COND, UNCOND = 0, 1


@dataclass(frozen=True)
class Job:
    """What the official sampler was given. `noise` is what it starts from, mixed where it is."""

    noise: Tensor
    first: Tensor
    cond: Tensor
    uncond: Tensor
    steps: int
    guidance: float

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0


@dataclass
class Call:
    """What the UNet saw and said at one timestep, by half of the guidance: `(b f) c h w`."""

    timestep: int
    seen: dict[int, Tensor] = field(default_factory=dict)
    said: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Run:
    """A sampling run: latents after each step, the result, and the UNet calls."""

    states: list[Tensor]
    final: Tensor
    calls: list[Call]


class Model(Protocol):
    """A model of the fixtures inside a host."""

    host: Host
    base: dict[str, Tensor]
    learned: dict[str, Tensor]

    def motion(self, learned: dict[str, Tensor]) -> Motion:
        """A motion of these weights, as the host builds one for use."""
        ...

    def tuning(self) -> AbstractContextManager[Host]:
        """The host made ready for gradients."""
        ...

    def sample(self, job: Job) -> Run: ...

    def invert(self, video: Tensor, text: Tensor, steps: int) -> tuple[list[Tensor], list[Call]]:
        """The latents `(b f) c h w` after each step of DDIM inversion, and the UNet calls."""
        ...


class DiffusersModel:
    """In diffusers, sampled by `lamp.method.sampling`."""

    def __init__(self, fixture: Fixture) -> None:
        from lamp.hosts.diffusers.unet import build_host

        self.base, self.learned = split_official(fixture.tensors)
        self.host: Host = build_host(two_dimensional(fixture.info["config"]), self.base)

    def motion(self, learned: dict[str, Tensor]) -> Motion:
        motion = Motion(map_unet(self.host.unet))
        motion.load_state_dict(learned)
        return motion.requires_grad_(False).eval()

    def tuning(self) -> AbstractContextManager[Host]:
        return nullcontext(self.host)

    def sample(self, job: Job) -> Run:
        from lamp.method.sampling import sample

        states: list[Tensor] = []
        with watched(self.host.unet, [UNCOND, COND] if job.guided else [COND]) as calls:
            final = sample(
                self.host,
                self.motion(self.learned),
                job.first,
                job.noise,
                job.cond,
                job.uncond,
                steps=job.steps,
                guidance=job.guidance,
                schedule=AdaINSchedule("official"),
                callback=lambda step, x: states.append(x.clone()),
            )
        return Run(states, final, calls)

    def invert(self, video: Tensor, text: Tensor, steps: int) -> tuple[list[Tensor], list[Call]]:
        from lamp.method.inversion import invert

        states: list[Tensor] = []
        motion = self.motion(self.learned)
        with watched(self.host.unet, [COND]) as calls:
            invert(
                self.host, motion, video, text, steps=steps, callback=lambda _, x: states.append(x)
            )
        return states, calls


class DoubleModel(DiffusersModel):
    """In diffusers, in float64."""

    def __init__(self, fixture: Fixture) -> None:
        super().__init__(fixture)
        self.host.unet.double()

    def motion(self, learned: dict[str, Tensor]) -> Motion:
        return super().motion(learned).double()

    def sample(self, job: Job) -> Run:
        parts = (job.noise, job.first, job.cond, job.uncond)
        return super().sample(Job(*(part.double() for part in parts), job.steps, job.guidance))

    def invert(self, video: Tensor, text: Tensor, steps: int) -> tuple[list[Tensor], list[Call]]:
        return super().invert(video.double(), text.double(), steps)


class ComfyModel:
    """In ComfyUI, sampled by what the LAMP KSampler node calls."""

    def __init__(self, fixture: Fixture) -> None:
        from lamp.hosts.comfy.models import build_patcher
        from lamp.hosts.comfy.training import ComfyHost

        self.base, self.learned = split_official(fixture.tensors)
        self.patcher = build_patcher(two_dimensional(fixture.info["config"]), self.base)
        self.host: Host = ComfyHost(self.patcher)

    def motion(self, learned: dict[str, Tensor]) -> Motion:
        from lamp.hosts.comfy.binding import load_motion

        config = MotionConfig(family=map_unet(self.host.unet).family)
        return load_motion(self.patcher, MotionFile(learned, config))

    def tuning(self) -> AbstractContextManager[Host]:
        from lamp.hosts.comfy.training import tuning_host

        return tuning_host(self.patcher)

    def sample(self, job: Job) -> Run:
        """A latent of ComfyUI is one video: several run one after the other."""
        videos = len(job.first)
        runs = [
            self._sample_one(Job(noise, first[None], cond, uncond, job.steps, job.guidance))
            for noise, first, cond, uncond in zip(
                job.noise.chunk(videos),
                job.first,
                job.cond.split(1),
                job.uncond.split(1),
                strict=True,
            )
        ]
        return _side_by_side(runs)

    # Nodes run in inference mode, and what was loaded in it has to serve training later on.
    @torch.inference_mode()
    def _sample_one(self, job: Job) -> Run:
        import comfy.utils

        from lamp.hosts.comfy.binding import BoundMotion, bind
        from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, sample_video

        comfy.utils.set_progress_bar_enabled(False)
        model = bind(self.patcher, BoundMotion(self.motion(self.learned)))
        schedule: Any = _Recorded(AdaINSchedule("official"))
        latent_format = self.patcher.model.latent_format
        latent = torch.zeros_like(job.noise)
        latent[:1] = latent_format.process_out(job.first)
        with watched(self.host.unet) as calls:
            out = sample_video(
                model,
                [[job.cond, {}]],
                [[job.uncond, {}]],
                {"samples": latent},
                seed=0,
                steps=job.steps,
                cfg=job.guidance,
                sampler="euler",  # without noise of its own this is the DDIM step
                scheduler=OFFICIAL_SCHEDULER,
                schedule=schedule,
                noise=job.noise,
            )
        return Run(schedule.states, latent_format.process_in(out["samples"]), calls)

    def invert(self, video: Tensor, text: Tensor, steps: int) -> tuple[list[Tensor], list[Call]]:
        """A latent of ComfyUI is one video: several run one after the other."""
        runs = [
            self._invert_one(frames, prompt, steps)
            for frames, prompt in zip(video.chunk(len(text)), text.split(1), strict=True)
        ]
        states = zip(*(states for states, _ in runs), strict=True)
        return [torch.cat(parts) for parts in states], runs[0][1]

    @torch.inference_mode()
    def _invert_one(
        self, video: Tensor, prompt: Tensor, steps: int
    ) -> tuple[list[Tensor], list[Call]]:
        import comfy.utils

        from lamp.hosts.comfy.binding import BoundMotion, bind
        from lamp.hosts.comfy.inversion import invert_video

        comfy.utils.set_progress_bar_enabled(False)
        model = bind(self.patcher, BoundMotion(self.motion(self.learned)))
        states: list[Tensor] = []
        latent = {"samples": self.patcher.model.latent_format.process_out(video)}
        with watched(self.host.unet) as calls:
            invert_video(
                model, [[prompt, {}]], latent, steps=steps, on_step=lambda _, x: states.append(x)
            )
        return states, calls


class _Recorded:
    """An AdaIN schedule that keeps the latents after each step."""

    def __init__(self, schedule: AdaINSchedule) -> None:
        self._schedule = schedule
        self.states: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._schedule, name)

    def after_step(self, *args: Any) -> Tensor:
        x = self._schedule.after_step(*args)
        self.states.append(x.clone())
        return x


@contextmanager
def watched(unet: nn.Module, halves: list[int] | None = None) -> Iterator[list[Call]]:
    """Collect the calls of a UNet, one entry a timestep.

    ComfyUI says in its options which halves of the guidance a batch holds, and may bring them in
    one call or in two; elsewhere `halves` says it.
    """
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        timestep = int(args[1].flatten()[0])
        if not calls or calls[-1].timestep != timestep:
            calls.append(Call(timestep))
        kinds = halves or kwargs["transformer_options"]["cond_or_uncond"]
        said = out if isinstance(out, Tensor) else out[0]
        parts = zip(kinds, args[0].chunk(len(kinds)), said.chunk(len(kinds)), strict=True)
        for kind, x, y in parts:
            calls[-1].seen[kind], calls[-1].said[kind] = x.clone(), y.clone()

    handle = unet.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _side_by_side(runs: list[Run]) -> Run:
    joined = [Call(call.timestep) for call in runs[0].calls]
    for i, call in enumerate(joined):
        for kind in runs[0].calls[i].seen:
            call.seen[kind] = torch.cat([run.calls[i].seen[kind] for run in runs])
            call.said[kind] = torch.cat([run.calls[i].said[kind] for run in runs])
    states = [torch.cat(parts) for parts in zip(*(run.states for run in runs), strict=True)]
    return Run(states, torch.cat([run.final for run in runs]), joined)


def two_dimensional(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the official 3-D UNet as one of the image UNet inside it."""
    flat = {key: _without_3d(value) for key, value in config.items() if not key.startswith("_")}
    heads = flat.get("attention_head_dim")
    if isinstance(heads, list) and len(set(heads)) == 1:
        flat["attention_head_dim"] = heads[0]
    return flat


def _without_3d(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("3D", "2D")
    return [_without_3d(v) for v in value] if isinstance(value, list) else value


def find_module(unet: nn.Module, name: str) -> nn.Module | None:
    """The module of a host whose output is that of the canonical module `name`, if it has one.

    ComfyUI has no counterpart of `down_blocks.0`: its place takes the last layer that belongs to
    it, in the order of execution.
    """
    if not hasattr(unet, "input_blocks"):
        return dict(unet.named_modules()).get(name)
    inside = [
        host.split(".")
        for host, canonical in canonical_names(unet).items()
        if f"{canonical}.".startswith(f"{name}.")
    ]
    if not inside:
        return None
    # The common beginning, part by part (os.path works with any list of lists).
    return _last_executed(unet, ".".join(os.path.commonprefix(inside)), inside)


def _last_executed(unet: nn.Module, place: str, inside: list[list[str]]) -> nn.Module:
    """Go down from `place`, which may be a container that the host never calls as a whole."""
    module = unet.get_submodule(place)
    while isinstance(module, nn.ModuleList) or type(module).__name__ == "TimestepEmbedSequential":
        depth = place.count(".") + 1
        children = {int(parts[depth]) for parts in inside if ".".join(parts[:depth]) == place}
        place += f".{max(children)}"
        module = unet.get_submodule(place)
    return module
