"""What each part of the method is good for: `python -m benchmarks.motion --ablations --seeds 3`.

The paper's ablations (sec. 4.3; supplement 2.1) and that of its temporal attention, on the toy
world: everything else, the clips, seeds and steps too, is as with the full method. Four variants
are tuned anew, three only sample the full motion otherwise:

- no first frame: neither the clean frame 1 nor its keys and values. All frames are noise, in tuning
  and sampling, and all count in the loss; the video begins with a frame of its own.
- no motion convolutions; no temporal attention: the rest is tuned without them.
- plain convolution: frame i sees i-1, i and i+1, not i-2, i-1 and i.
- no shared noise; no AdaIN; no histogram matching (to the decoded frame 1).

Measures, over two sets of unseen objects: overlap with the true place, path error (median; from the
object's own place in frame 1), the share followed, and beside them

- kept: how well colour and shape agree when the place is taken out; looks: the share of videos with
  kept at least 0.5 and 20 dB of the true ground;
- fidelity: the ground of frames 2.. against that of the given frame 1 as the VAE gives it, dB;
- flicker: mean change of the ground from frame to frame, from frame 2 on, in bytes;
- jerk: how unevenly the object moves: root mean square of the second difference of its place, in
  units of the true way per frame. A still object has none, so it tells of motion only.

Prints a table, then what the paper says of each part and whether this world shows it, and last one
line of JSON. What is done lies in the folder of `--keep`: a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from lamp.errors import LampError
from lamp.hosts.diffusers.unet import DiffusersHost
from lamp.method.architecture import SiteMap, map_unet
from lamp.method.histogram import match_histograms
from lamp.method.host import Host
from lamp.method.layout import FrameLayout
from lamp.method.motion import Motion
from lamp.method.noise import draw_noise, share_noise
from lamp.method.schedule import add_noise, ddim_step, ddim_timesteps, next_alpha
from lamp.toy import score
from lamp.toy.base import ToyBase
from lamp.toy.cases import Case, evaluation_cases, training_clips
from lamp.toy.measures import centroids, object_mask
from lamp.training.batches import Batch
from lamp.training.loop import Training, noise_error

from .ablations_report import MEASURES, SETS, print_table, save_plot, spread, verdicts
from .control import around
from .motion import Recipe, draw_latents, latent_clips, train_config

Videos = NDArray[np.uint8]  # n f h w 3
RESULTS = "results.json"


# --- what is tuned -----------------------------------------------------------------------------


class NoMotionConvs(Motion):
    """Temporal attention and tuned queries alone."""

    def __init__(self, sites: SiteMap) -> None:
        super().__init__(replace(sites, convs=()))


class NoTemporalAttention(Motion):
    """Its attention stays at zero, where it began."""

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
    """With ordinary convolutions in the place of prediction's."""

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
    host: Host, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor, min_snr: float
) -> Tensor:
    """`predict_loss` without its first frame: noise on all frames `(b f) c h w`, all count."""
    videos = len(timesteps)
    alphas = host.alphas_cumprod[timesteps]
    per_frame = alphas.repeat_interleave(len(latents) // videos)[:, None, None, None]
    guess = host.predict(add_noise(latents, noise, per_frame), timesteps, text).float()
    both = (x.unflatten(0, (videos, -1)) for x in (guess, noise))
    return noise_error(*both, alphas, min_snr=min_snr)


class FreeTraining(Training):
    """Tuning with `free_loss`."""

    def _loss(self, batch: Batch, noise: Tensor, timesteps: Tensor) -> Tensor:
        return free_loss(
            self.host, batch.latents, noise, timesteps, batch.text, self.config.min_snr
        )


# --- the variants ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """The method without one of its parts. `tuned`: whether it is tuned anew."""

    tuned: bool = True
    parts: Callable[[SiteMap], Motion] = Motion
    first_frame: bool = True
    shared_noise: bool = True
    adain: bool = True
    histogram: bool = True

    def recipe(self, full: Recipe) -> Recipe:
        return replace(
            full,
            alpha=full.alpha if self.shared_noise else 0.0,
            adain=full.adain if self.adain else "off",
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
}


def learn(toy: ToyBase, kind: str, variant: Variant, recipe: Recipe, seed: int) -> Motion:
    """As `benchmarks.motion.tune`, of the variant's parts."""
    motion = variant.parts(map_unet(toy.unet)).initialise(seed)
    clips = latent_clips(toy, training_clips(seed, kind), recipe.prompts)
    how = Training if variant.first_frame else FreeTraining
    training = how(DiffusersHost(toy.unet), motion, clips, train_config(recipe, seed))
    training.run()
    training.finish()
    return motion.requires_grad_(False)


@torch.no_grad()
def free_latents(
    toy: ToyBase, motion: Motion, cases: list[Case], recipe: Recipe, seed: int
) -> Tensor:
    """Latents `(b f) c h w` of videos that begin with a frame of their own, by DDIM."""
    frames, videos = len(cases[0].frames), len(cases)
    shape = toy.encode(cases[0].first_frame[None]).shape[1:]
    x = share_noise(draw_noise(frames, *shape, seed=seed, videos=videos), recipe.alpha, frames)
    text = toy.encode_text([case.prompt for case in cases])
    host, steps = DiffusersHost(toy.unet), recipe.sample_steps
    layout = FrameLayout(frames, videos)
    with motion.attached(toy.unet, layout, groupnorm=recipe.groupnorm):
        for step, timestep in enumerate(ddim_timesteps(steps)):
            eps = host.predict(x, torch.full((videos,), timestep), text)
            alpha = host.alphas_cumprod[timestep]
            x = ddim_step(x, eps, alpha, next_alpha(host.alphas_cumprod, timestep, steps))
            x = recipe.schedule.after_step(x, step, steps, frames)
    return recipe.schedule.after_loop(x, frames)


def film(
    toy: ToyBase,
    motion: Motion,
    variant: Variant,
    cases: list[Case],
    recipe: Recipe,
    seed: int,
    batch: int = 4,
) -> Videos:
    """Videos of the cases; the given first frame stands in them where the variant has one."""
    draw = draw_latents if variant.first_frame else free_latents
    own, videos = variant.recipe(recipe), []
    for start in range(0, len(cases), batch):
        part = cases[start : start + batch]
        decoded = toy.decode(draw(toy, motion, part, own, seed + start))
        for case, video in zip(part, decoded.unflatten(0, (len(part), -1)), strict=True):
            if variant.histogram:
                video = match_histograms(video, video[0])
            pictures = (video * 255.0).round().to(torch.uint8).numpy()
            if variant.first_frame:
                pictures = np.concatenate([case.frames[:1], pictures[1:]])
            videos.append(pictures)
    return np.stack(videos)


# --- measures ----------------------------------------------------------------------------------


def measure(videos: Videos, cases: list[Case], given: Videos) -> dict[str, float | None]:
    """Figures of a set; `given`: the first frames (n h w 3) as the VAE gives them back."""
    pairs = list(zip(videos, cases, strict=True))
    figures = score.summarise([score.score_clip(*pair) for pair in pairs])
    rows = [
        steadiness(video, case, first) for (video, case), first in zip(pairs, given, strict=True)
    ]
    steady = {name: [row[name] for row in rows] for name in rows[0]}
    found = {"looks": figures["appearance"], **figures}
    return {name: found[name] if name in found else _mean(steady[name]) for name in MEASURES}


def steadiness(video: Videos, case: Case, first: Videos) -> dict[str, float | None]:
    """Fidelity, flicker and jerk of one video `f h w 3` of one object."""
    (target,) = case.targets
    masks = object_mask(video, target.colour, case.ground)
    outside = ~around(masks | target.masks | target.masks[:1])
    still = np.broadcast_to(first, video.shape)
    change = np.abs(np.diff(video[1:].astype(float), axis=0))
    both = outside[2:] & outside[1:-1]
    step = np.linalg.norm(np.diff(centroids(target.masks), axis=0), axis=1).mean()
    bends = np.linalg.norm(np.diff(centroids(masks), n=2, axis=0), axis=1)
    bends = bends[np.isfinite(bends)]
    return {
        "fidelity": score.ground_psnr(video[1:], still[1:], outside[1:]),
        "flicker": float(change[both].mean()),
        "jerk": float(np.sqrt((bends**2).mean()) / step) if len(bends) else None,
    }


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return round(float(np.mean(there)), 4) if there else None


def given_frames(toy: ToyBase, cases: list[Case]) -> Videos:
    decoded = toy.decode(toy.encode(np.stack([case.first_frame for case in cases])))
    return (decoded * 255.0).round().to(torch.uint8).numpy()


# --- a run -------------------------------------------------------------------------------------


class Kept:
    """What is done, in a folder: figures by variant and seed, and the tuned motions."""

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
                    f"{path} holds results of other settings: name another folder, or delete "
                    "that one."
                )
            self.results = told["results"]

    def add(self, key: str, figures: dict[str, Any]) -> None:
        self.results[key] = figures
        if self._folder is not None:
            path = self._folder / RESULTS
            told = {"settings": self._settings, "results": self.results}
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(told, indent=1), encoding="utf-8")
            os.replace(beside, path)

    def motion(self, name: str, fresh: Motion, tune: Callable[[], Motion]) -> Motion:
        """The motion `name`, as an earlier run kept it, or tuned."""
        path = None if self._folder is None else self._folder / f"{name}.safetensors"
        if path is not None and path.is_file():
            fresh.load_state_dict(load_file(path))
            return fresh.requires_grad_(False)
        motion = tune()
        if path is not None:
            beside = path.with_suffix(".part")
            save_file({k: v.contiguous() for k, v in motion.state_dict().items()}, beside)
            os.replace(beside, path)
        return motion


def runs(
    toy: ToyBase, kind: str, recipe: Recipe, seeds: list[int], cases: int, kept: Kept
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name, seed and figures of every variant, those that are kept too."""
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
                    lambda tuned=tuned, seed=seed: learn(toy, kind, tuned, recipe, seed),
                )
                figures: dict[str, Any] = {}
                for which in SETS:
                    unseen = evaluation_cases(seed, which, kind, count=cases)
                    videos = film(toy, motion, variant, unseen, recipe, seed)
                    figures[which] = measure(videos, unseen, given_frames(toy, unseen))
                figures["seconds"] = round(time.perf_counter() - started, 1)
                kept.add(key, figures)
            yield name, seed, kept.results[key]


def main(toy: ToyBase, kind: str, recipe: Recipe, args: argparse.Namespace) -> int:
    """All variants on all seeds; see this module's beginning."""
    seeds = list(range(args.seed, args.seed + args.seeds))
    settings = {"motion": kind, "recipe": asdict(recipe), "cases": args.cases}
    kept = Kept(args.keep, settings)
    results: dict[str, dict[int, Any]] = {}
    for name, seed, figures in runs(toy, kind, recipe, seeds, args.cases, kept):
        results.setdefault(name, {})[seed] = figures
        print(f"{name}, seed {seed}: {figures['seconds']:.0f} s", flush=True)
    print_table(results)
    claims = verdicts(results, FULL)
    for claim in claims:
        print(f"{claim['verdict']:>14}: {claim['says']} {claim['figures']}")
    if args.save_plot:
        save_plot(args.save_plot, results)
    told = {"settings": settings, "seeds": seeds, "spread": spread(results), "claims": claims}
    print(json.dumps({**told, "results": results}))
    return 0
