"""LAMP Trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..lamp.clips.load import ClipSet
from ..lamp.files.lock import alone_in
from ..lamp.method.architecture import base_hash, unet_family
from ..lamp.training.loop import Training
from ..lamp.training.memory.plan import CHECKPOINTING
from ..lamp.training.optimizers import check_optimizer
from ..lamp.training.outcome import Outcome, describe_training, train_to_file
from ..lamp.training.recipe import (
    OPTIMIZERS,
    PRECISIONS,
    PRESETS,
    TrainConfig,
    choose_precision,
    preset,
)
from ..lamp.training.samples import Samples
from ..lamp.training.session import Place, RunFolder, SaveConfig, identity, mark_of
from ..lamp.training.state import check_state, restore
from ..lamp.training.validation import split_clips
from .clips import LampClips
from .common import (
    LampMotion,
    advanced,
    aliases,
    named_errors,
    seed_input,
    upstream_name,
    workflow_metadata,
)
from .model_paths import shown
from .progress import NodeProgress, told_with_picture
from .recipe import LampRecipe
from .training_run import Show, find_place, resume_choices

LossMap = io.Custom("LOSS_MAP")


class Trainer(io.ComfyNode):
    """Few-shot tuning inside ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_Trainer",
            display_name="LAMP Trainer",
            category="LAMP/training",
            description="Learn the motion of a few clips. The image model stays as it is; the "
            "motion is saved to models/lamp_motion, also when you cancel. Log, samples and what "
            "is needed to go on lie in output/lamp_training.",
            is_output_node=True,
            is_experimental=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[*_models(), *_learning(), *_keeping(), *_optional()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL with the new motion."),
                LampMotion.Output(display_name="motion", tooltip="The motion itself."),
                io.Image.Output(display_name="loss_plot", tooltip="Loss over the steps."),
                io.String.Output(display_name="file", tooltip="Where the motion was saved."),
                LossMap.Output(
                    display_name="loss_map",
                    tooltip="The losses, for the core node Plot Loss Graph.",
                ),
            ],
            **aliases("train motion", "motion lora", "few-shot video", "fine-tune video"),
        )

    @classmethod
    @named_errors("LAMP Trainer", ("resume",))
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        clips: ClipSet,
        recipe: str,
        steps: int,
        precision: str,
        checkpointing: str,
        name: str,
        resume: str,
        save_every: int,
        keep_states: int,
        sample_every: int,
        sample_cfg: float,
        own_recipe: dict[str, Any] | None = None,
        first_frame: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        from ..lamp.hosts.comfy import (
            clips as comfy_clips,
        )
        from ..lamp.hosts.comfy import (
            preview as comfy_preview,
        )
        from ..lamp.hosts.comfy import (
            training as comfy_training,
        )
        from ..lamp.hosts.comfy.binding import image_model_hash
        from ..lamp.hosts.comfy.memory import plan_memory
        from ..lamp.hosts.comfy.vae import first_picture

        config = TrainConfig(
            steps=steps,
            frames=clips.settings.frames,
            **(preset(recipe, steps) if own_recipe is None else own_recipe),
            **settings,
        )
        place = find_place(name, resume)
        _refuse_early(config, precision, clips, place)
        comfy_training.check_trainable(model)
        progress = NodeProgress(cls.hidden.unique_id)
        comfy_training.warn_of_ignored_patches(model)
        given = None
        if first_frame is not None:
            given = _encoded(model, vae, first_picture(first_frame, progress.announce), clips)
        latents = comfy_clips.prepare_clips(model, vae, clip, clips, progress.update, progress.say)
        with comfy_training.tuning_host(model) as host:
            config = replace(
                config, precision=choose_precision(precision, host.dtype, host.has_bf16)
            )
            config = plan_memory(host, latents, config, checkpointing, progress.announce)
            motion = comfy_training.new_motion(host, config.seed)
            told = describe_training(config, clips, motion.sites.family)
            told["base_hash"] = image_model_hash(model)
            told["base_model"] = upstream_name(cls.hidden.prompt, cls.hidden.unique_id, "model")
            training = Training(host, motion, latents, config)
            # A run learns beside the LoRAs in front of it, and goes on beside the same ones.
            who = identity(base_hash(host.unet), clips)
            if place.state is not None:
                restore(training, place.state, who)
            place = place.claim()
            mark = mark_of(place.state)
            outcome = Outcome(place.motion, told, workflow_metadata(cls.hidden), mark)
            samples = Samples(
                place.folder,
                latents,
                lambda frames: comfy_preview.decode_for_preview(model, vae, frames),
                sample_cfg,
                given,
            )
            show = Show(progress, samples)
            folder = RunFolder(place.folder, who, keep_states, mark)
            save_config = SaveConfig(save_every, keep_states, sample_every)
            with alone_in(place.folder):
                path = train_to_file(
                    training, folder, save_config, outcome, show.step, show.sample, progress.say
                )
        return _results(cls, model, outcome.file(training), training, path)


def _refuse_early(config: TrainConfig, precision: str, clips: ClipSet, place: Place) -> None:
    """What needs no model to be refused, before one is loaded and clips are encoded."""
    check_optimizer(config)
    split_clips(len(clips), config.hold_out, config.seed)
    if place.state is None:
        return
    settled = precision in PRECISIONS
    asked = replace(config, precision=precision) if settled else config
    known = {"clips": identity("", clips)["clips"]}
    check_state(place.state, asked, 1, known, () if settled else ("precision",))


def _results(
    node: type[Trainer], model: Any, file: Any, training: Training, path: Path
) -> io.NodeOutput:
    from ..lamp.hosts.comfy import binding as comfy
    from ..lamp.training.plots import loss_plot

    bound = comfy.BoundMotion(comfy.load_motion(model, file), training.config.groupnorm)
    plot = loss_plot(training.losses, training.validation)
    losses = {"loss": training.losses}
    return io.NodeOutput(
        comfy.bind(model, bound),
        file,
        plot,
        str(path),
        losses,
        ui=told_with_picture(plot, f"saved {shown(path)}", node),
    )


def _encoded(model: Any, vae: Any, picture: Tensor, clips: ClipSet) -> Tensor:
    """Scaled latents `c h w` of the picture `1 h w 3` that the samples start from."""
    from ..lamp.clips.images import fit_images
    from ..lamp.hosts.comfy.vae import encode_first_frame

    width, height = clips.size(0)
    picture = fit_images(picture, width, height, "crop")
    family = unet_family(model.model.diffusion_model)
    latent = encode_first_frame(vae, picture, family)[0].float().cpu()
    return latent * model.model.latent_format.scale_factor


def _models() -> list[Any]:
    return [
        io.Model.Input(
            "model",
            tooltip="A SD 1.x checkpoint's MODEL. One of SD 2.x or SD-XL gives a motion for that "
            "family.",
        ),
        io.Clip.Input("clip", tooltip="The same checkpoint's text encoder."),
        io.Vae.Input("vae", tooltip="The same checkpoint's VAE."),
        LampClips.Input("clips", tooltip="From LAMP Training Clips."),
    ]


def _learning() -> list[Any]:
    return [
        io.Combo.Input(
            "recipe",
            options=list(PRESETS),
            tooltip="paper: as published, for 30,000 steps. fast: higher learning rates that fall "
            "to zero over the run, for a fifth of the steps or fewer.",
        ),
        io.Int.Input(
            "steps",
            default=2000,
            min=1,
            max=1_000_000,
            tooltip="Optimiser steps. The official configs train 30,000, and 500 to edit "
            "a single clip; the default here is a first look.",
        ),
        io.Int.Input(
            "batch",
            default=1,
            min=1,
            max=64,
            tooltip="Clips that go through the model at once; 1 takes the least memory.",
        ),
        io.Int.Input(
            "accumulate",
            default=1,
            min=1,
            max=64,
            tooltip="Batches in each step: as good as a larger batch, without its memory.",
        ),
        seed_input(
            "Same seed and settings, same motion. A stopped training goes on with its own seed "
            "only.",
            most=2**63 - 1,
            changes=False,
        ),
        io.Combo.Input(
            "precision",
            options=["auto", *PRECISIONS],
            tooltip="Arithmetic of the forward pass; what is learned is always kept in fp32. auto "
            "fits the device.",
        ),
        io.Combo.Input(
            "checkpointing",
            options=list(CHECKPOINTING),
            tooltip="Save memory by computing activations twice; about a third slower. auto: only "
            "where it would not fit otherwise.",
        ),
        io.Combo.Input(
            "optimizer",
            options=list(OPTIMIZERS),
            tooltip="adamw8bit keeps its averages in 8 bits and saves 1.5 GB at SD 1.x size; it "
            "needs the package bitsandbytes or torchao.",
        ),
        io.Int.Input(
            "hold_out",
            default=0,
            min=0,
            max=64,
            tooltip="Clips that are not learned from: when the loss on them rises while the loss "
            "falls, the motion is learned by heart. 1 or 2 of 12 clips is a good choice.",
        ),
    ]


def _keeping() -> list[Any]:
    return [
        io.String.Input(
            "name",
            default="motion",
            tooltip="The file: models/lamp_motion/NAME_00001.safetensors. Folders are fine:"
            " horses/run.",
        ),
        io.Combo.Input(
            "resume",
            options=resume_choices(),
            tooltip="Go on from an earlier training of the same clips and settings: latest is the "
            "newest one of this name (a new one if there is none). R refreshes the list.",
        ),
        io.Int.Input(
            "save_every",
            default=500,
            min=0,
            max=100_000,
            tooltip="Keep the whole state every so many steps, to go on from after a crash; also "
            "kept when you cancel. About 3 GB each at SD 1.x size. 0: only when it stops.",
            **advanced(io.Int.Input),
        ),
        io.Int.Input(
            "keep_states",
            default=2,
            min=1,
            max=100,
            tooltip="How many of the newest states stay on the disk.",
            **advanced(io.Int.Input),
        ),
        io.Int.Input(
            "sample_every",
            default=250,
            min=0,
            max=100_000,
            tooltip="Draw a short video with the motion so far every so many steps; it plays in "
            "the preview and is kept in output/lamp_training. 0: never.",
        ),
        io.Float.Input(
            "sample_cfg",
            default=7.5,
            min=1.0,
            max=30.0,
            step=0.5,
            tooltip="Guidance of these samples.",
            **advanced(io.Float.Input),
        ),
    ]


def _optional() -> list[Any]:
    return [
        LampRecipe.Input(
            "own_recipe",  # the id that saved workflows hold
            display_name="custom_recipe",
            optional=True,
            tooltip="From LAMP Training Recipe; takes the place of recipe.",
        ),
        io.Image.Input(
            "first_frame",
            optional=True,
            tooltip="What the samples start from; by default the first clip's first frame. A "
            "picture that no clip shows tells more.",
        ),
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=1024,
            optional=True,
            tooltip="Learn each matrix as two factors of this rank. 64 makes the file a twentieth "
            "of its size at SD 1.x size, and the kept states small. 0 learns it whole (paper).",
            **advanced(io.Int.Input),
        ),
    ]


NODES: list[type[io.ComfyNode]] = [Trainer]
