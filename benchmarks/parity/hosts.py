"""The fixtures' models in both hosts, sampled through each host's usual code path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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

# ComfyUI's numbers of the two halves of guidance; the official code puts UNCOND first.
COND, UNCOND = 0, 1


@dataclass(frozen=True)
class Job:
    """The input of a sampling run, or of an inversion, which uses latents, cond and steps only.

    - latents: where the run starts, `(b f) c h w`;
    - first: the latents of the first frames, `b c h w`;
    - cond, uncond: text embeddings, `b n d`.
    """

    latents: Tensor
    first: Tensor
    cond: Tensor
    uncond: Tensor
    steps: int
    guidance: float = 1.0

    def of(self, change: Callable[[Tensor], Tensor]) -> Job:
        """The job with all tensors changed."""
        names = ("latents", "first", "cond", "uncond")
        return replace(self, **{name: change(getattr(self, name)) for name in names})

    def videos(self) -> list[Job]:
        """One job for each video."""
        count = len(self.first)
        return [self.of(lambda x, i=i: x.chunk(count)[i]) for i in range(count)]


@dataclass
class Call:
    """Input and output of the UNet at one timestep, by half of the guidance: `(b f) c h w`."""

    timestep: int
    seen: dict[int, Tensor] = field(default_factory=dict)
    said: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class Run:
    """Latents after each step, the result, and the UNet calls."""

    states: list[Tensor]
    final: Tensor
    calls: list[Call]


class Model(Protocol):
    """A model of the fixtures in a host."""

    host: Host
    base: dict[str, Tensor]
    learned: dict[str, Tensor]
    dtype: torch.dtype

    def motion(self, learned: dict[str, Tensor]) -> Motion:
        """A motion with these weights, built as the host builds it for use."""
        ...

    def tuning(self) -> AbstractContextManager[Host]:
        """The host prepared for gradients."""
        ...

    def sample(self, job: Job) -> Run: ...

    def invert(self, job: Job) -> Run:
        """DDIM inversion."""
        ...


class DiffusersModel:
    """In diffusers, sampled by `lamp.method.sampling`."""

    dtype = torch.float32

    def __init__(self, fixture: Fixture) -> None:
        from lamp.hosts.diffusers.unet import build_host

        self.base, self.learned = split_official(fixture.tensors)
        self.host: Host = build_host(two_dimensional(fixture.info["config"]), self.base)
        self.host.unet.to(self.dtype)

    def motion(self, learned: dict[str, Tensor]) -> Motion:
        motion = Motion(map_unet(self.host.unet))
        motion.load_state_dict(learned)
        return motion.requires_grad_(False).eval().to(self.dtype)

    def tuning(self) -> AbstractContextManager[Host]:
        return nullcontext(self.host)

    def sample(self, job: Job) -> Run:
        from lamp.method.sampling import sample

        job, states = job.of(lambda x: x.to(self.dtype)), []
        with watched(self.host.unet, [UNCOND, COND] if job.guidance != 1.0 else [COND]) as calls:
            final = sample(
                self.host, self.motion(self.learned), job.first, job.latents, job.cond, job.uncond,
                steps=job.steps, guidance=job.guidance, schedule=AdaINSchedule("official"),
                callback=lambda _, x: states.append(x.clone()),
            )  # fmt: skip
        return Run(states, final, calls)

    def invert(self, job: Job) -> Run:
        from lamp.method.inversion import invert

        job, motion, states = job.of(lambda x: x.to(self.dtype)), self.motion(self.learned), []
        keep: Any = lambda _, x: states.append(x)  # noqa: E731
        with watched(self.host.unet, [COND]) as calls:
            invert(self.host, motion, job.latents, job.cond, steps=job.steps, callback=keep)
        return Run(states, states[-1], calls)


class DoubleModel(DiffusersModel):
    """In diffusers, in float64."""

    dtype = torch.float64


class ComfyModel:
    """In ComfyUI, sampled through the functions that the LAMP nodes call.

    A latent of ComfyUI is one video: several run one after the other.
    """

    dtype = torch.float32

    def __init__(self, fixture: Fixture) -> None:
        import comfy.utils

        from lamp.hosts.comfy.models import build_patcher
        from lamp.hosts.comfy.training import ComfyHost

        comfy.utils.set_progress_bar_enabled(False)
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
        return _joined([self._sample(video) for video in job.videos()])

    def invert(self, job: Job) -> Run:
        return _joined([self._invert(video) for video in job.videos()])

    def _bound(self) -> Any:
        from lamp.hosts.comfy.binding import BoundMotion, bind

        return bind(self.patcher, BoundMotion(self.motion(self.learned)))

    # Nodes run in inference mode, and what is loaded there must still serve training.
    @torch.inference_mode()
    def _sample(self, job: Job) -> Run:
        from lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, sample_video

        schedule: Any = _Recorded(AdaINSchedule("official"))
        latent_format = self.patcher.model.latent_format
        latent = torch.zeros_like(job.latents)
        latent[:1] = latent_format.process_out(job.first)
        with watched(self.host.unet) as calls:
            out = sample_video(
                self._bound(), [[job.cond, {}]], [[job.uncond, {}]], {"samples": latent}, seed=0,
                steps=job.steps, cfg=job.guidance, scheduler=OFFICIAL_SCHEDULER, schedule=schedule,
                noise=job.latents, sampler="euler",  # which without noise is the DDIM step
            )  # fmt: skip
        return Run(schedule.states, latent_format.process_in(out["samples"]), calls)

    @torch.inference_mode()
    def _invert(self, job: Job) -> Run:
        from lamp.hosts.comfy.inversion import invert_video

        states: list[Tensor] = []
        latent = {"samples": self.patcher.model.latent_format.process_out(job.latents)}
        keep: Any = lambda _, x: states.append(x)  # noqa: E731
        with watched(self.host.unet) as calls:
            invert_video(self._bound(), [[job.cond, {}]], latent, steps=job.steps, on_step=keep)
        return Run(states, states[-1], calls)


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
    """Record the calls of a UNet, one entry per timestep.

    ComfyUI names the halves of guidance in its options and may send them in one call or two;
    for other hosts `halves` names them.
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


def _joined(runs: list[Run]) -> Run:
    """The runs of single videos as one of all videos."""
    calls = []
    for parts in zip(*(run.calls for run in runs), strict=True):
        seen, said = (
            {kind: torch.cat([getattr(call, side)[kind] for call in parts])
             for kind in getattr(parts[0], side)}
            for side in ("seen", "said")
        )  # fmt: skip
        calls.append(Call(parts[0].timestep, seen, said))
    states = [torch.cat(parts) for parts in zip(*(run.states for run in runs), strict=True)]
    return Run(states, torch.cat([run.final for run in runs]), calls)


def two_dimensional(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the image UNet inside an official 3-D UNet."""
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
    """The host's module with the output of the canonical module `name`, if there is one.

    ComfyUI has no counterpart of `down_blocks.0`: the last layer in it, in the order of execution,
    has the same output.
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
    place = ".".join(os.path.commonprefix(inside))  # works on lists of name parts as well
    module = unet.get_submodule(place)
    # A container that the host never calls as a whole: go down to its last child.
    while isinstance(module, nn.ModuleList) or type(module).__name__ == "TimestepEmbedSequential":
        depth = place.count(".") + 1
        children = {int(parts[depth]) for parts in inside if ".".join(parts[:depth]) == place}
        place += f".{max(children)}"
        module = unet.get_submodule(place)
    return module
