"""A training run, from settings to motion file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clips.clip_set import ClipSet
from ..clips.images import LATENT_STRIDE
from ..clips.load import load_clips
from ..clips.report import describe_clips
from ..clips.settings import ClipSettings
from ..errors import LampError, is_out_of_memory
from ..files.lock import alone_in
from ..hosts.diffusers.accelerate import AccelerateGroup, WorkerFolder, is_launched
from ..hosts.diffusers.models import ImageModel, decode, load_image_model, on_device
from ..hosts.diffusers.unet import DiffusersHost, shadow_host
from ..method.architecture import base_hash, map_unet
from ..method.motion import Motion
from ..motion_file.file import MotionFile
from ..motion_file.provenance import CARD_KEY
from ..plain import log
from ..toy.base import check_clips
from ..training.latents import LatentClips, cache_latents
from ..training.loop import StepReport, Training
from ..training.memory.cards import settings_for
from ..training.memory.estimate import Estimator, MemoryPlan
from ..training.memory.plan import attention_is_fused, free_memory, plan_memory
from ..training.optimizers import check_optimizer
from ..training.outcome import Outcome, describe_training, train_to_file
from ..training.recipe import PRECISIONS, choose_precision
from ..training.samples import Samples
from ..training.session import RunFolder, SaveConfig, identity, mark_of, run_training
from ..training.state import TrainingState, begun_with, check_state, restore
from ..training.validation import split_clips
from ..training.warm_start import load_start
from .place import find_place
from .stopping import StopRequest
from .terminal import LogLines, Terminal, describe_step
from .train_config import TOY, RunSettings


def train(settings: RunSettings) -> None:
    """Train with `settings`, in this process or, if launched by accelerate, in several.

    Raises:
        LampError: a setting, a clip or a model cannot be used.
        KeyboardInterrupt: the run was stopped; its state is saved.
    """
    stop = StopRequest(launched=is_launched())
    group = AccelerateGroup(settings.choices.device, lambda: stop.asked) if is_launched() else None
    done = False
    try:
        stream = sys.stdout if _is_main(group) else None
        with Terminal(stream) as terminal, _warnings(terminal):
            if group is not None:
                clips = settings.config.batch * settings.config.accumulate * group.count
                terminal.say(
                    f"{group.count} processes on {group.device.type}, {clips} clips per step"
                )
            _train(settings, terminal, stop, group)
        done = True
    finally:
        # After an error the others may never arrive; the launcher ends them.
        if group is not None and (done or group.stopping):
            group.leave()


def _train(
    settings: RunSettings, terminal: Terminal, stop: StopRequest, group: AccelerateGroup | None
) -> None:
    place = find_place(settings.folder, settings.name, settings.resume, terminal.say)
    device = choose_device(settings.choices.device) if group is None else group.device
    processes = 1 if group is None else group.count
    precision = _precision(device, settings.choices.precision, group)
    if settings.choices.precision == "auto" and place.state is not None:
        precision = begun_with(place.state, ("precision",), processes).get("precision", precision)
    settings = replace(settings, choices=replace(settings.choices, precision=precision))
    model = None
    if settings.choices.card != "none":
        model = load_image_model(settings.base, settings.tokenizer or "")
        settings = fitted_to_card(settings, model, device, terminal, place.state, group)
    config = replace(settings.config, precision=precision)
    if config.patience and processes > 1:
        raise LampError(
            f"patience is {config.patience}, but there are {processes} processes, of which only "
            "one measures: set patience to 0."
        )
    check_optimizer(config)
    start = None
    if place.state is None:
        start = load_start(config)
    else:
        check_state(place.state, config, processes, {})
    clips = load_clips(
        settings.clips_folder,
        settings.prompt,
        **asdict(settings.clips),
        progress=lambda done, total: terminal.progress("reading clips", done, total),
    )
    terminal.say(describe_clips(clips))
    split_clips(len(clips), config.hold_out, config.seed)
    if place.state is not None:
        check_state(place.state, config, processes, {"clips": identity("", clips)["clips"]})
    if model is None:
        model = load_image_model(settings.base, settings.tokenizer or "")
    if settings.base == TOY:
        check_clips(clips.sizes, model.vae.config.sample_size)
    if start is not None:
        start.check_against(map_unet(model.unet))
        terminal.say(f"starting from {start.name}")
    base = base_hash(model.unet)
    who = identity(base, clips)
    if group is not None:
        group.check_same(json.dumps([asdict(config), asdict(clips.settings), who]))
    with group.main_first() if group and settings.cache else contextlib.nullcontext():
        latents = encode(model, clips, device, settings.cache, terminal)
    host = DiffusersHost(model.unet, model.v_prediction)
    training = new_training(settings, host, latents, device, group, terminal, start)
    if place.state is not None:
        restore(training, place.state, who)
        terminal.say(f"resuming after step {training.step} in {place.folder}")
    watch = _Watch(terminal, stop, group)
    if not _is_main(group):
        with stop.listening():
            return run_training(training, WorkerFolder(), SaveConfig(0, 1, 0), watch.step)
    mark = mark_of(place.state)
    place = place.claim()
    about = describe_training(training.config, clips, training.motion.sites.family)
    about |= {"base_hash": base, "base_model": model.name}
    extra = {CARD_KEY: settings.card} if settings.card else {}
    outcome = Outcome(place.motion, about, extra, run=mark)
    folder = RunFolder(place.folder, who, settings.save_config.keep, mark)
    decoder = _decoder(model.vae, device)
    guidance = settings.save_config.sample_guidance
    samples = Samples(place.folder, latents, decoder, guidance, say=terminal.say)
    del model  # frees its text encoder
    with stop.listening(), alone_in(place.folder):
        path = train_to_file(training, folder, settings.save_config, outcome, watch.step, samples)
    terminal.say(f"saved {path}")


def fitted_to_card(
    settings: RunSettings,
    model: ImageModel,
    device: torch.device,
    terminal: Terminal,
    state: TrainingState | None = None,
    group: AccelerateGroup | None = None,
) -> RunSettings:
    """The settings with what the chosen card decides, except for the keys that are given. A run
    that goes on from a state keeps what it began with. The precision is chosen already.

    Raises:
        OutOfMemoryPlanError: nothing fits.
    """
    precision = settings.choices.precision
    card, config, clips, given = settings.choices.card, settings.config, settings.clips, {}
    plan = MemoryPlan(
        **{each.name: getattr(config, each.name) for each in fields(config)}
        | {"precision": precision},
        height=clips.height // LATENT_STRIDE,
        width=clips.width // LATENT_STRIDE,
        device="cuda" if card != "auto" or device.type != "cpu" else "cpu",
        fused=card != "auto" or attention_is_fused(device, PRECISIONS[precision] or torch.float32),
    )
    names = {"height", "width", "frames", "batch", "optimizer", "update", "rank"}
    given = {name: getattr(plan, name) for name in names & settings.given}
    if settings.choices.checkpointing != "auto":
        given["gradient_checkpointing"] = settings.choices.checkpointing == "on"
    estimator = Estimator(model.unet, shadow_host)
    chosen = settings_for(card, estimator, plan, _free(device, group), given)
    terminal.say(chosen.describe())
    chosen, kept = chosen.as_begun(state, 1 if group is None else group.count)
    if kept:
        terminal.say(kept)
    training = chosen.training
    del training["gradient_checkpointing"]
    return replace(
        settings,
        clips=ClipSettings(**asdict(clips) | chosen.clips),
        config=replace(config, frames=chosen.clips["frames"], **training),
        choices=replace(settings.choices, checkpointing=chosen.checkpointing),
        card=chosen.record(),
    )


def encode(
    model: ImageModel, clips: ClipSet, device: torch.device, cache: Path | None, terminal: Terminal
) -> LatentClips:
    """Encode clips and prompts on `device` or load them from the cache, then free its memory."""

    def tell(done: int, total: int, cached: bool) -> None:
        how = "cached" if cached else "encoded"
        terminal.progress("encoding clips", done, total, how)

    with on_device(device, model.vae, model.text_encoder):
        kept = None if cache is None else model.cache(cache)
        return cache_latents(clips, model.encode_posterior, model.encode_prompts, tell, kept)


def new_training(
    settings: RunSettings,
    host: DiffusersHost,
    latents: LatentClips,
    device: torch.device,
    group: AccelerateGroup | None,
    terminal: Terminal,
    start: MotionFile | None = None,
) -> Training:
    """A run before its first step: the UNet on `device` in the chosen precision, motion in fp32.

    Raises:
        OutOfMemoryPlanError: it cannot fit.
    """
    config = replace(settings.config, precision=settings.choices.precision)
    unet = host.unet
    unet.to(device, PRECISIONS[config.precision] or torch.float32)
    checkpointing, free = settings.choices.checkpointing, _free(device, group)
    config = plan_memory(
        unet, latents, config, checkpointing, device, free, terminal.say, shadow_host
    )
    motion = Motion(map_unet(unet)).initialise(config.seed).to(device)
    return Training(host, motion, latents, config, group, start)


def _decoder(vae: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Decodes on `device`, or on the CPU if the VAE does not fit beside the training."""

    def decode_latents(video: Tensor) -> Tensor:
        try:
            with on_device(device, vae):
                return decode(vae, video)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.info("not enough memory for the VAE during training: it decodes on the CPU")
        return decode(vae, video)

    return decode_latents


class _Watch:
    """Shows each step, and ends the run after one if it was asked to stop."""

    def __init__(
        self, terminal: Terminal, stop: StopRequest, group: AccelerateGroup | None
    ) -> None:
        self._terminal, self._stop, self._group = terminal, stop, group

    def step(self, report: StepReport) -> None:
        self._terminal.progress("training", report.step, report.steps, describe_step(report))
        # All processes have to end after the same step.
        if self._stop.asked if self._group is None else self._group.stopping:
            raise KeyboardInterrupt


def choose_device(wanted: str) -> torch.device:
    """`auto` is the best that is there.

    Raises:
        LampError: the wanted one is not there.
    """
    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return torch.device(next(name for name, there in found.items() if there))
    if not found[wanted]:
        there = ", ".join(name for name, there in found.items() if there)
        raise LampError(f"device is {wanted}, but PyTorch finds only {there}: choose auto.")
    return torch.device(wanted)


def _free(device: torch.device, group: AccelerateGroup | None) -> int:
    """The free memory in bytes, of the fullest device if there are several."""
    free = free_memory(device)
    return free if group is None else group.least(free)


def _precision(device: torch.device, wanted: str, group: AccelerateGroup | None = None) -> str:
    """`auto` is half precision on CUDA, fp32 elsewhere; the same on all devices."""
    cuda = device.type == "cuda"
    # PyTorch emulates bf16 on cards before RTX 30, slowly and without fused attention.
    fast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    fast = fast if group is None else bool(group.least(fast))
    return choose_precision(wanted, None if cuda else torch.float32, fast)


def _is_main(group: AccelerateGroup | None) -> bool:
    return group is None or group.rank == 0


@contextlib.contextmanager
def _warnings(terminal: Terminal) -> Iterator[None]:
    """Show warnings on the terminal inside the `with` block."""
    handler = LogLines(terminal)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
