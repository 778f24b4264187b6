"""LAMP Trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..lamp.checkpoint import MotionConfig, MotionFile, save_motion
from ..lamp.clips import ClipSet
from ..lamp.motion import GROUPNORM_MODES
from ..lamp.recipe import PRECISIONS, RATE_SCHEDULES, TrainConfig
from ..lamp.training import StepReport, train
from .clips import LampClips
from .common import LampMotion, motion_folder, named_errors, upstream_name, workflow_metadata
from .progress import NodeProgress, duration

logger = logging.getLogger("lamp")


class Trainer(io.ComfyNode):
    """Few-shot tuning inside ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_Trainer",
            display_name="LAMP Trainer",
            category="LAMP/training",
            description="Learn the motion of a few clips. The image model stays as it is; the "
            "motion is saved to models/lamp_motion, also when you cancel.",
            is_output_node=True,
            is_experimental=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model", tooltip="A SD 1.x checkpoint's MODEL (not SD-XL)."),
                io.Clip.Input("clip", tooltip="The same checkpoint's text encoder."),
                io.Vae.Input("vae", tooltip="The same checkpoint's VAE."),
                LampClips.Input("clips", tooltip="From LAMP Training Clips."),
                io.Int.Input(
                    "steps",
                    default=2000,
                    min=1,
                    max=1_000_000,
                    tooltip="Optimiser steps. The official configs train 30,000, and 500 to edit "
                    "a single clip; the default here is a first look.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=1e-8,
                    max=1.0,
                    step=1e-8,
                    tooltip="The paper's is 0.00003.",
                ),
                io.Int.Input(
                    "batch",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Clips in each step; 1 takes the least memory.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Same seed and settings, same motion.",
                ),
                io.String.Input(
                    "name",
                    default="motion",
                    tooltip="The file: models/lamp_motion/NAME_00001.safetensors. Folders are fine:"
                    " horses/run.",
                ),
                io.Combo.Input(
                    "rate_schedule",
                    options=list(RATE_SCHEDULES),
                    tooltip="Learning rate over the run: constant (paper) or falling to zero.",
                ),
                io.Int.Input(
                    "warmup", default=0, min=0, max=10_000, tooltip="Steps of rising learning rate."
                ),
                io.Float.Input(
                    "ema",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    tooltip="Average the weights over the last steps: 0.99 is about the last 100, "
                    "0 is off (paper).",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *PRECISIONS],
                    tooltip="Arithmetic of the forward pass; what is learned is always kept in "
                    "fp32. auto fits the device.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=True,
                    tooltip="Save memory by computing activations twice; about a third slower.",
                ),
                io.Combo.Input(
                    "groupnorm",
                    options=list(GROUPNORM_MODES),
                    tooltip="Statistics over all frames of a video (pooled, as the official code) "
                    "or frame by frame. The motion file remembers it.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL with the new motion."),
                LampMotion.Output(display_name="motion", tooltip="The motion itself."),
                io.Image.Output(display_name="loss_plot", tooltip="Loss over the steps."),
                io.String.Output(display_name="file", tooltip="Where the motion was saved."),
            ],
        )

    @classmethod
    @named_errors("LAMP Trainer")
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        clips: ClipSet,
        steps: int,
        learning_rate: float,
        batch: int,
        seed: int,
        name: str,
        precision: str,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..lamp.hosts import comfy, comfy_training
        from ..lamp.plots import loss_plot

        target = motion_folder(name)
        comfy_training.check_untouched(model)
        progress = NodeProgress(cls.hidden.unique_id)
        latents = comfy_training.prepare_clips(vae, clip, clips, progress.update)
        with comfy_training.tuning_host(model) as host:
            config = TrainConfig(
                steps=steps,
                frames=clips.settings.frames,
                batch=batch,
                learning_rate=learning_rate,
                seed=seed,
                precision=comfy_training.choose_precision(host, precision),
                **settings,
            )
            motion = comfy_training.new_motion(host, seed)
            about = describe(config, clips, motion.sites.family)
            about["base_hash"] = comfy_training.base_hash(host.unet)
            about["base_model"] = upstream_name(cls.hidden.prompt, cls.hidden.unique_id, "model")
            save = Saver(motion, about, target, workflow_metadata(cls.hidden))
            losses = save.even_if_stopped(
                lambda on_step: train(host, motion, latents, config, on_step), progress
            )
        file = save.file(len(losses))
        path = save.write(file, "")
        bound = comfy.BoundMotion(comfy.load_motion(model, file), config.groupnorm)
        plot = loss_plot(losses)
        return io.NodeOutput(
            comfy.bind(model, bound), file, plot, str(path), ui=ui.PreviewImage(plot, cls=cls)
        )


def describe(config: TrainConfig, clips: ClipSet, family: str) -> dict[str, Any]:
    """What the motion file tells of its training."""
    rates = [info.fps for info in clips.infos if info.fps]
    settings, captions = clips.settings, clips.captions
    return {
        "family": family,
        "frames": config.frames,
        "width": settings.width,
        "height": settings.height,
        "fps": float((settings.fps or (rates[0] if rates else 8.0)) / settings.stride),
        "groupnorm": config.groupnorm,
        # One prompt for all clips is the motion's own; captions clip by clip are no such thing.
        "prompt": captions[0] if len(set(captions)) == 1 else "",
        "captions": captions,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
    }


class Saver:
    """Turns the motion under training into files; what was learned survives a cancel."""

    def __init__(
        self, motion: Any, about: dict[str, Any], target: Path, extra: dict[str, str]
    ) -> None:
        self._motion, self._about, self._target, self._extra = motion, about, target, extra

    def even_if_stopped(
        self, run: Callable[[Callable[[StepReport], None]], list[float]], progress: NodeProgress
    ) -> list[float]:
        """Run the training; on a cancel or an error write what there is, then let it through."""
        done = 0

        def on_step(report: StepReport) -> None:
            nonlocal done
            done = report.step
            left = duration(report.seconds_left)
            progress.say(f"loss {report.loss:.4f}, step {done} of {report.steps}, {left} left")
            progress.update(done, report.steps)

        try:
            return run(on_step)
        except BaseException as stop:
            # BaseException: the host's cancel is none of Exception's children on every version.
            if done:
                path = self.write(self.file(done), f"-step{done:06}-stopped")
                logger.warning("training stopped after step %d, saved as %s", done, path.name)
                progress.say(f"stopped after step {done}, saved as {path.name} ({stop})")
            raise

    def file(self, steps: int) -> MotionFile:
        state = {k: v.detach().float().cpu().clone() for k, v in self._motion.state_dict().items()}
        return MotionFile(state, MotionConfig(**self._about, steps=steps), name=self._target.name)

    def write(self, file: MotionFile, mark: str) -> Path:
        path = self._target.with_name(f"{self._target.name}{mark}.safetensors")
        return save_motion(path, file.state, file.config, extra=self._extra)


NODES: list[type[io.ComfyNode]] = [Trainer]
