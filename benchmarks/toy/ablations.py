"""What each part of the method contributes, on either toy world:

    python -m benchmarks.motion --ablations --seeds 3
    python -m benchmarks.scenes --ablations --motions smile --seeds 3

The paper's ablations (sec. 4.3; supplement 2.1) and one of temporal attention. Clips, seeds, steps
and all else are as in the full method. Four variants are tuned, four only sample the full motion
differently:

- no first frame: neither the clean frame 1 nor its keys and values. All frames are noise and count
  in the loss; the video begins with a generated frame.
- no motion convolutions; no temporal attention: tuned without them.
- plain convolution: frame i sees i-1, i and i+1, not i-2, i-1 and i.
- no shared noise; no AdaIN; no histogram matching (to the decoded frame 1).
- with motion guidance: not of the paper; every other variant samples without it.

Each world has measures of its own (ablations_sprites.py, ablations_scenes.py).

Prints a table, the paper's claims and whether this world shows them, and last one line of JSON.
With `--keep` finished work is stored in a folder, and a stopped run resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import LampError
from lamp.files.atomic import write_file
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import SiteMap, map_unet
from lamp.method.histogram import match_histograms
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.schedule import add_noise, ddim_step, ddim_timesteps, next_alpha
from lamp.toy.base import ToyBase
from lamp.toy.cases import Clips
from lamp.training.batches import Batch
from lamp.training.loop import Training, noise_error

from .ablations_report import (
    COLOURS,
    Claim,
    Measure,
    print_table,
    save_plot,
    spread,
    verdicts,
)
from .runs import (
    MOTION_GUIDANCE,
    Figures,
    Recipe,
    Sampler,
    Start,
    Videos,
    finished,
    kept_motion,
    pictures,
    start_training,
)

RESULTS = "results.json"


# --- tuned variants ---------------------------------------------------------------------------


class NoMotionConvs(Motion):
    """Temporal attention and tuned queries alone."""

    def __init__(self, sites: SiteMap) -> None:
        super().__init__(replace(sites, convs=()))


class NoTemporalAttention(Motion):
    """Temporal attention stays at zero, where it begins."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        learned = super().trained_parameters().items()
        return {name: value for name, value in learned if ".attn_temp." not in name}


class PlainConv1d(nn.Conv1d):
    """The ordinary convolution over time: out[i] = w0 y[i-1] + w1 y[i] + w2 y[i+1] + b."""

    def forward(self, video: Tensor) -> Tensor:
        """`b f c h w` -> the same shape."""
        rows = video.permute(0, 3, 4, 2, 1)
        out = functional.conv1d(rows.flatten(0, 2), self.weight, self.bias, padding=1)
        return out.unflatten(0, rows.shape[:3]).permute(0, 4, 3, 1, 2)


class PlainConvs(Motion):
    """Ordinary convolutions over time."""

    def __init__(self, sites: SiteMap) -> None:
        super().__init__(sites)
        for site in sites.convs:
            layer = self.get_submodule(site.name)
            layer.conv1d = PlainConv1d(site.channels, site.channels, 3)


class NoFirstFrame(Motion):
    """Every frame has its own keys and values."""

    def attached(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        return super().attached(*args, **kwargs, first_frame=False)


def free_loss(
    host: Host,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    text: Tensor,
    min_snr: float,
    difference_loss: float = 0.0,
) -> Tensor:
    """`predict_loss` without a first frame: all frames `(b f) c h w` get noise and count."""
    videos = len(timesteps)
    alphas = host.alphas_cumprod[timesteps]
    per_frame = alphas.repeat_interleave(len(latents) // videos)[:, None, None, None]
    guess = host.predict(add_noise(latents, noise, per_frame), timesteps, text).float()
    both = [x.unflatten(0, (videos, -1)) for x in (guess, noise)]
    loss = noise_error(*both, alphas, min_snr=min_snr)
    if not difference_loss:
        return loss
    changes = (x.diff(dim=1) for x in both)
    return loss + difference_loss * noise_error(*changes, alphas, min_snr=min_snr)


class FreeTraining(Training):
    """Tuning with `free_loss`."""

    def _loss(self, batch: Batch, noise: Tensor, timesteps: Tensor) -> Tensor:
        given = (self.host, batch.latents, noise, timesteps, batch.text)
        return free_loss(*given, self.config.min_snr, self.config.difference_loss)


@dataclass(frozen=True)
class Variant:
    """The method without one of its parts; `tuned` variants have a motion of their own."""

    tuned: bool = True
    parts: Callable[[SiteMap], Motion] = Motion
    first_frame: bool = True
    shared_noise: bool = True
    adain: bool = True
    histogram: bool = True
    motion_guidance: float = 1.0

    def recipe(self, full: Recipe) -> Recipe:
        """How to sample this variant of a method that samples as in `full`."""
        return replace(
            full,
            alpha=full.alpha if self.shared_noise else 0.0,
            adain=full.adain if self.adain else "off",
            motion_guidance=self.motion_guidance,
        )


FULL = "full method"
VARIANTS = {
    FULL: Variant(),
    "no first frame": Variant(parts=NoFirstFrame, first_frame=False),
    "no motion convolutions": Variant(parts=NoMotionConvs),
    "plain convolution": Variant(parts=PlainConvs),
    "no temporal attention": Variant(parts=NoTemporalAttention),
    "no shared noise": Variant(tuned=False, shared_noise=False),
    "no AdaIN": Variant(tuned=False, adain=False),
    "no histogram matching": Variant(tuned=False, histogram=False),
    "with motion guidance": Variant(tuned=False, motion_guidance=MOTION_GUIDANCE),
}


@dataclass(frozen=True)
class World:
    """What is measured in a toy world.

    Attributes:
        sets: names of the sets of test cases.
        clips: of a seed and motion, tuned as the recipe says.
        cases: of a seed, set, motion, count and recipe.
        measure: figures of videos `n f h w 3` of cases, whose decoded first frames are the third
            argument.
    """

    sets: tuple[str, ...]
    measures: Mapping[str, Measure]
    claims: tuple[Claim, ...]
    clips: Callable[[int, str, Recipe], Clips]
    cases: Callable[[int, str, str, int, Recipe], list[Any]]
    measure: Callable[[Videos, list[Any], Videos], Figures]


def learn(
    toy: ToyBase, world: World, kind: str, variant: Variant, recipe: Recipe, seed: int
) -> Motion:
    motion = variant.parts(map_unet(toy.unet)).initialise(seed)
    loop = Training if variant.first_frame else FreeTraining
    clips = world.clips(seed, kind, recipe)
    return finished(start_training(toy, recipe, seed, kind, motion, loop, clips=clips)).motion


# --- videos -----------------------------------------------------------------------------------


@torch.no_grad()
def free_latents(sampler: Sampler, cases: Sequence[Start]) -> Tensor:
    """Latents `(b f) c h w` of videos with a generated first frame, by DDIM."""
    toy, recipe = sampler.toy, sampler.recipe
    frames, videos = len(cases[0].frames), len(cases)
    shape = toy.encode(cases[0].first_frame[None]).shape[1:]
    noise = draw_noise(frames, *shape, seed=sampler.seed, videos=videos)
    x = share_noise(noise, recipe.alpha, frames)
    text = toy.encode_text([case.prompt for case in cases])
    host, steps = DiffusersHost(toy.unet), recipe.sample_steps
    layout = FrameLayout(frames, videos)
    with sampler.motion.attached(toy.unet, layout, groupnorm=recipe.groupnorm):
        for step, timestep in enumerate(ddim_timesteps(steps)):
            eps = host.predict(x, torch.full((videos,), timestep), text)
            alpha = host.alphas_cumprod[timestep]
            x = ddim_step(x, eps, alpha, next_alpha(host.alphas_cumprod, timestep, steps))
            x = recipe.schedule.after_step(x, step, steps, frames)
    return recipe.schedule.after_loop(x, frames)


def film(sampler: Sampler, variant: Variant, cases: Sequence[Start], batch: int = 4) -> Videos:
    """Videos of the cases; they begin with the given first frame unless the variant has none."""
    videos = []
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        own = replace(sampler, recipe=variant.recipe(sampler.recipe), seed=sampler.seed + start)
        latents = own.latents(part) if variant.first_frame else free_latents(own, part)
        decoded = sampler.toy.decode(latents)
        for case, video in zip(part, decoded.unflatten(0, (len(part), -1)), strict=True):
            if variant.histogram:
                video = match_histograms(video, video[0])
            frames = (video * 255.0).round().to(torch.uint8).numpy()
            if variant.first_frame:
                frames = np.concatenate([case.frames[:1], frames[1:]])
            videos.append(frames)
    return np.stack(videos)


def decoded_first_frames(toy: ToyBase, cases: Sequence[Start]) -> Videos:
    """The first frames `n h w 3`, encoded and decoded."""
    return pictures(toy, toy.encode(np.stack([case.first_frame for case in cases])))


# --- a run ------------------------------------------------------------------------------------


class Kept:
    """Finished work in a folder: figures by variant and seed, and the tuned motions.

    Raises:
        LampError: the folder holds results of other settings.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self._folder, self._settings = folder, settings
        self.results: dict[str, Any] = {}
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RESULTS
        if path.is_file():
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["settings"] != settings:
                raise LampError(
                    f"{path} holds results of other settings. Choose another folder with --keep, "
                    "or delete this one."
                )
            self.results = told["results"]

    def add(self, key: str, figures: dict[str, Any]) -> None:
        self.results[key] = figures
        if self._folder is not None:
            path = self._folder / RESULTS
            told = {"settings": self._settings, "results": self.results}
            text = json.dumps(told, indent=1)
            write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def motion(self, name: str, fresh: Motion, tune: Callable[[], Motion]) -> Motion:
        """The stored motion `name`, or else tuned."""
        path = None if self._folder is None else self._folder / f"{name}.safetensors"
        return kept_motion(path, fresh, tune)


def runs(
    toy: ToyBase,
    world: World,
    kind: str,
    recipe: Recipe,
    seeds: list[int],
    cases: int,
    kept: Kept,
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, seed and figures of every variant, stored ones included."""
    for seed in seeds:
        for name, variant in VARIANTS.items():
            key = f"{name}, {seed}"
            if key not in kept.results:
                started = time.perf_counter()
                source = name if variant.tuned else FULL
                tuned = VARIANTS[source]
                motion = kept.motion(
                    f"{source.replace(' ', '-')}-{seed}",
                    tuned.parts(map_unet(toy.unet)),
                    lambda tuned=tuned, seed=seed: learn(toy, world, kind, tuned, recipe, seed),
                )
                sampler, figures = Sampler(toy, motion, recipe, seed), {}
                for which in world.sets:
                    unseen = world.cases(seed, which, kind, cases, recipe)
                    videos = film(sampler, variant, unseen)
                    given = decoded_first_frames(toy, unseen)
                    figures[which] = world.measure(videos, unseen, given)
                figures["seconds"] = round(time.perf_counter() - started, 1)
                kept.add(key, figures)
            yield name, seed, kept.results[key]


def main(toy: ToyBase, world: World, kind: str, recipe: Recipe, args: argparse.Namespace) -> int:
    """All variants on all seeds."""
    seeds = list(range(args.seed, args.seed + args.seeds))
    settings = {"motion": kind, "recipe": asdict(recipe), "cases": args.cases}
    results: dict[str, dict[int, Any]] = {}
    kept = Kept(args.keep, settings)
    for name, seed, figures in runs(toy, world, kind, recipe, seeds, args.cases, kept):
        results.setdefault(name, {})[seed] = figures
        print(f"{name}, seed {seed}: {figures['seconds']:.0f} s", flush=True)
    print_table(results, world.measures, world.sets)
    claims = verdicts(results, FULL, world.claims, world.measures, world.sets)
    for claim in claims:
        print(f"{claim['verdict']:>14}: {claim['says']} {claim['figures']}")
    if args.save_plot:
        colours = dict(zip(world.sets, COLOURS, strict=False))
        save_plot(args.save_plot, results, world.measures, colours)
    means = spread(results, world.measures, world.sets)
    told = {"settings": settings, "seeds": seeds, "spread": means, "claims": claims}
    print(json.dumps({**told, "results": results}))
    return 0
