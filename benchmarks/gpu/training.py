"""Training steps: memory beside the estimate, speed beside the literal baseline, a toy motion."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.speed.models import DTYPES, TEXT_TOKENS
from lamp.hosts.diffusers.unet import DiffusersHost, shadow_host
from lamp.method.architecture import map_unet, text_width
from lamp.method.motion import Motion
from lamp.training.loop import Training
from lamp.training.memory.estimate import Estimator, MemoryPlan
from lamp.training.recipe import TrainConfig

from .clips import noise_clips
from .session import Session
from .unet import PlainUNet


def steps(session: Session) -> None:
    """Peak and speed of a step in each precision, with and without checkpointing."""
    cases = [
        (name, {"gradient_checkpointing": on}) for name in session.half for on in (True, False)
    ]
    name = session.half[0]
    cases.insert(1, (name, {"gradient_checkpointing": True, "optimizer": "adamw8bit"}))
    for name, more in cases:
        label = ", ".join(
            [name, "checkpointing" if more["gradient_checkpointing"] else "no checkpointing"]
            + (["8-bit AdamW"] if "optimizer" in more else [])
        )
        session.case("training", label, partial(_step, session, name, more), 40)
    session.case("training", f"{session.half[0]}, literal", lambda: _literal(session), 40)


def _step(session: Session, name: str, more: dict[str, Any]) -> dict[str, Any]:
    shape, kind = session.sizes.shape, session.device.kind
    config = TrainConfig(steps=1000, frames=shape.frames, precision=name, **more)
    unet = session.unet(DTYPES[name])
    estimate = Estimator(PlainUNet(session.sizes.config).to("meta"), shadow_host)(
        MemoryPlan(
            **vars(config), height=shape.height, width=shape.width,
            device="cpu" if kind == "cpu" else "cuda",
        )
    )  # fmt: skip
    motion = Motion(map_unet(unet), device=kind).initialise(0)
    training = Training(DiffusersHost(unet), motion, noise_clips(shape, text_width(unet)), config)
    peak = session.device.peak(lambda: (training.advance(), training.advance()))
    return {
        "step_seconds": session.seconds(training.advance),
        "estimate_bytes": estimate.total,
        "allocated_bytes": peak.allocated, "reserved_bytes": peak.reserved,
    }  # fmt: skip


def _literal(session: Session) -> dict[str, Any]:
    """A step of the official layout with latents and text embeddings precomputed, under autocast
    and without checkpointing."""
    from benchmarks.speed.literal import LiteralUNet, literal_weights
    from benchmarks.speed.models import Subject
    from benchmarks.speed.runs import LiteralTraining

    name, shape, kind = session.half[0], session.sizes.shape, session.device.kind
    unet = session.unet(torch.float32)
    motion = session.motion(unet, torch.float32)
    literal = LiteralUNet(session.sizes.config, literal_weights(unet, motion))
    host = DiffusersHost(unet)
    subject = Subject(host, motion, literal, None, session.sizes.config, torch.float32, kind)
    training = LiteralTraining(subject)
    latents = torch.randn(shape.frames, 4, shape.height, shape.width, device=kind)
    text = torch.randn(1, TEXT_TOKENS, text_width(unet), device=kind)

    def step() -> None:
        with torch.autocast(kind, DTYPES[name]):
            training.step(latents, text)

    peak = session.device.peak(step)
    return {
        "step_seconds": session.seconds(step),
        "allocated_bytes": peak.allocated, "reserved_bytes": peak.reserved,
    }  # fmt: skip


def toy_motion(session: Session) -> None:
    """Learn 'moves right' with the toy base on the device, and score it on unseen objects."""
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as missing:
        session.skip(
            "toy motion", f"the toy base's VAE needs diffusers and transformers: {missing}"
        )
        return
    tiny = session.device.kind == "cpu"
    session.case("toy motion", "moves right", lambda: _toy(session, 2 if tiny else 240), 90)


def _toy(session: Session, count: int) -> dict[str, Any]:
    from benchmarks.toy.runs import RECIPES, Sampler, latent_clips, measure
    from lamp.toy.base import UNET_CONFIG, load_toy_base
    from lamp.toy.cases import evaluation_cases, training_clips
    from lamp.training.recipe import preset

    kind, recipe = session.device.kind, RECIPES["moves_right"]
    toy = load_toy_base()
    unet = PlainUNet(UNET_CONFIG)
    unet.load_state_dict(toy.unet.state_dict())
    unet.requires_grad_(False).eval().to(kind)
    clips = latent_clips(toy, training_clips(0, "moves_right"), recipe)
    config = TrainConfig(
        steps=count, frames=clips.clips.settings.frames, batch=recipe.clips_per_step,
        **preset(recipe.preset, count),
    )  # fmt: skip
    motion = Motion(map_unet(unet), device=kind).initialise(0)
    training = Training(DiffusersHost(unet), motion, clips, config)
    taken = session.device.seconds(lambda: training.run(lambda report: None))
    training.finish()
    # Sampling runs on the CPU, where the toy base's VAE is.
    learned = Motion(motion.sites).requires_grad_(False)
    learned.load_state_dict(motion.cpu().state_dict())
    cases = evaluation_cases(0, "combination", "moves_right", count=1 if count < 100 else 16)
    recipe = replace(recipe, sample_steps=2 if count < 100 else recipe.sample_steps)
    scores = measure(Sampler(toy, learned, recipe).videos(cases), cases)
    return {"steps": count, "training_seconds": taken, **scores}
