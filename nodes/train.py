"""LAMP Trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..lamp.clips.clip_set import ClipSet
from ..lamp.errors import LampError
from ..lamp.files.lock import alone_in
from ..lamp.hosts.comfy.folders import shown
from ..lamp.method.architecture import base_hash, map_unet, unet_family
from ..lamp.motion_file.provenance import CARD_KEY
from ..lamp.settings import find_setting
from ..lamp.toy.base import check_clips
from ..lamp.training.loop import Training
from ..lamp.training.memory.cards import CardSettings
from ..lamp.training.optimizers import check_optimizer, check_package, installed_optimizers
from ..lamp.training.outcome import Outcome, describe_training, train_to_file
from ..lamp.training.recipe import (
    PRECISIONS,
    RunChoices,
    SaveConfig,
    TrainConfig,
    choose_precision,
)
from ..lamp.training.recipe import preset as recipe_settings
from ..lamp.training.samples import Samples
from ..lamp.training.session import Place, RunFolder, identity, mark_of
from ..lamp.training.state import check_state, restore
from ..lamp.training.validation import split_clips
from ..lamp.training.warm_start import load_start
from .clips import LampClips
from .common import (
    LampMotion,
    aliases,
    named_errors,
    plain_errors,
    seed_input,
    upstream_name,
    workflow_metadata,
)
from .model_paths import MOTION_FOLDER, motion_path
from .preset import LampPreset
from .progress import NodeProgress, image_and_text
from .recipe import LampRecipe, setting_input
from .training_run import NONE, Show, find_place, resume_choices

LossMap = io.Custom("LOSS_MAP")


class Trainer(io.ComfyNode):
    """Train a motion inside ComfyUI."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_Trainer",
            display_name="LAMP Trainer",
            category="LAMP/training",
            description="Trains a motion on a few clips. The image model stays frozen. The motion "
            "is saved to models/lamp_motion, also when you cancel; log, samples and training "
            "states go to output/lamp_training.",
            is_output_node=True,
            is_experimental=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[*_models(), *_learning(), *_keeping(), *_optional()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="MODEL with the new motion."),
                LampMotion.Output(display_name="motion", tooltip="The trained motion."),
                io.Image.Output(
                    display_name="loss_plot", tooltip="Plot of the loss over the steps."
                ),
                io.String.Output(display_name="file", tooltip="Path of the saved motion."),
                LossMap.Output(
                    display_name="loss_map",
                    tooltip="Loss of every step, for the core node Plot Loss Graph.",
                ),
            ],
            **aliases("train motion", "motion lora", "few-shot video", "fine-tune video"),
        )

    @classmethod
    @plain_errors
    def validate_inputs(
        cls, optimizer: str | None = None, start_from: str | None = None
    ) -> bool | str:
        """Name the missing package or motion file of a saved workflow before anything runs."""
        try:
            if optimizer is not None:
                check_package(optimizer)
            return start_from in (None, NONE) or bool(motion_path(str(start_from)))
        except LampError as error:
            return str(error)

    @classmethod
    @named_errors("LAMP Trainer", ("resume", "start_from", "optimizer"))
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
        start_from: str = NONE,
        preset: CardSettings | None = None,
        keep_motions: int = 0,
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
        from ..lamp.hosts.comfy.toy import toy_side
        from ..lamp.hosts.comfy.vae import first_picture

        progress = NodeProgress(cls.hidden.unique_id)
        place = find_place(name, resume, progress)
        kept = ""
        if preset is not None:
            preset, kept = preset.as_begun(place.state)
            settings |= preset.training
            del settings["gradient_checkpointing"]
            checkpointing = preset.checkpointing
        config = TrainConfig(
            steps=steps,
            frames=clips.settings.frames,
            start_from="" if start_from == NONE else start_from,
            **(recipe_settings(recipe, steps) if own_recipe is None else own_recipe),
            **settings,
        )
        save_config = SaveConfig(save_every, keep_states, sample_every, keep_motions=keep_motions)
        _refuse_early(config, precision, clips, place)
        comfy_training.check_trainable(model)
        for side in filter(None, map(toy_side, (model, vae))):
            check_clips(clips.sizes, side)
        start = None
        if place.state is None:
            start = load_start(config, map_unet(model.model.diffusion_model), motion_path)
        if kept:
            progress.warn(kept)
        if preset is not None and (advice := preset.differs_from(clips.settings)):
            progress.warn(advice)
        if ignored := comfy_training.ignored_patches(model):
            progress.warn(
                "Patches on the MODEL (except LoRAs) have no effect in training: "
                f"{', '.join(ignored)}."
            )
        given = None
        if first_frame is not None:
            given = _encoded(model, vae, first_picture(first_frame, progress.warn), clips)
        latents = comfy_clips.prepare_clips(model, vae, clip, clips, progress.update, progress.say)
        with comfy_training.tuning_host(model) as host:
            config = replace(
                config, precision=choose_precision(precision, host.dtype, host.has_bf16)
            )
            config = plan_memory(host, latents, config, checkpointing, progress.announce)
            motion = comfy_training.new_motion(host, config.seed)
            about = describe_training(config, clips, motion.sites.family)
            about["base_hash"] = image_model_hash(model)
            about["base_model"] = upstream_name(cls.hidden.prompt, cls.hidden.unique_id, "model")
            # LoRAs before the trainer are part of the base: a resumed run needs the same ones. The
            # training may round the base's weights.
            who = identity(base_hash(host.unet), clips)
            training = Training(host, motion, latents, config, start=start)
            if place.state is not None:
                restore(training, place.state, who)
            place = place.claim()
            mark = mark_of(place.state)
            extra = workflow_metadata(cls.hidden)
            if preset is not None:
                extra[CARD_KEY] = preset.record()
            outcome = Outcome(place.motion, about, extra, mark)
            samples = Samples(
                place.folder,
                latents,
                lambda frames: comfy_preview.decode_for_preview(model, vae, frames),
                sample_cfg,
                given,
                progress.warn,
            )
            show = Show(progress, samples)
            folder = RunFolder(place.folder, who, keep_states, mark)
            with alone_in(place.folder):
                path = train_to_file(
                    training, folder, save_config, outcome, show.step, show.sample, progress.warn
                )
        told = "\n".join([f"saved {shown(path)}", *progress.warnings])
        return _results(cls, model, outcome.file(training), training, path, show, told)


def _refuse_early(config: TrainConfig, precision: str, clips: ClipSet, place: Place) -> None:
    """Refuse what can be refused before models are loaded and clips are encoded."""
    check_optimizer(config)
    split_clips(len(clips), config.hold_out, config.seed)
    settled = precision in PRECISIONS
    # Checks the settings with this precision, too.
    asked = replace(config, precision=precision) if settled else config
    if place.state is None:
        return
    known = {"clips": identity("", clips)["clips"]}
    check_state(place.state, asked, 1, known, () if settled else ("precision",))


def _results(
    node: type[Trainer],
    model: Any,
    file: Any,
    training: Training,
    path: Path,
    show: Show,
    told: str,
) -> io.NodeOutput:
    from ..lamp.hosts.comfy import binding as comfy
    from ..lamp.training.plots import loss_plot

    bound = comfy.BoundMotion(
        comfy.load_motion(model, file),
        groupnorm=file.config.groupnorm,
        trained_frames=file.config.frames,
    )
    plot = loss_plot(training.losses, training.validation)
    show.end(plot, training.config.steps)
    losses = {"loss": training.losses}
    return io.NodeOutput(
        comfy.bind(model, bound),
        file,
        plot,
        str(path),
        losses,
        ui=image_and_text(plot, told, node),
    )


def _encoded(model: Any, vae: Any, picture: Tensor, clips: ClipSet) -> Tensor:
    """Scaled latents `c h w` of the image `1 h w 3` that the samples start from."""
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
            tooltip="MODEL of an SD 1.x checkpoint, without a motion. An SD 2.x or SD-XL model "
            "gives a motion for that family.",
        ),
        io.Clip.Input("clip", tooltip="Text encoder of the same checkpoint."),
        io.Vae.Input("vae", tooltip="VAE of the same checkpoint."),
        LampClips.Input("clips", tooltip="Clips from LAMP Training Clips."),
    ]


def _learning() -> list[Any]:
    return [
        setting_input("preset", RunChoices, id="recipe"),
        setting_input("steps", default=2000),
        setting_input("batch"),
        setting_input("accumulate"),
        seed_input(find_setting(TrainConfig, "seed").metadata["help"], 2**63 - 1, changes=False),
        setting_input("precision", RunChoices),
        setting_input("checkpointing", RunChoices),
        setting_input("optimizer", options=installed_optimizers()),
        setting_input("hold_out"),
    ]


def _keeping() -> list[Any]:
    return [
        io.String.Input(
            "name",
            default="motion",
            tooltip="File name in models/lamp_motion. A number is added. May contain folders, such "
            "as horses/run.",
        ),
        io.Combo.Input(
            "resume",
            options=resume_choices(),
            tooltip="none starts a new training. latest continues from the newest state of this "
            "name, if there is one. Or choose a state (press R to refresh). Clips, settings, "
            "MODEL, CLIP and VAE must be the same.",
        ),
        setting_input("save_every", SaveConfig),
        setting_input("keep", SaveConfig, id="keep_states"),
        setting_input("sample_every", SaveConfig),
        setting_input("sample_guidance", SaveConfig, id="sample_cfg"),
    ]


def _optional() -> list[Any]:
    return [
        LampRecipe.Input(
            "own_recipe",  # the id in saved workflows
            display_name="custom_recipe",
            optional=True,
            tooltip="Recipe from LAMP Training Recipe. Overrides recipe.",
        ),
        io.Image.Input(
            "first_frame",
            optional=True,
            tooltip="First frame of the sample videos. Default: the first frame of the first clip. "
            "An image that is not in the clips shows better what was learned.",
        ),
        setting_input("rank", optional=True),
        setting_input("minutes", optional=True),
        setting_input("patience", optional=True),
        io.Combo.Input(
            "start_from",
            options=[NONE, *folder_paths.get_filename_list(MOTION_FOLDER)],
            default=NONE,
            optional=True,
            tooltip=find_setting(TrainConfig, "start_from").metadata["help"],
        ),
        LampPreset.Input(
            "preset",
            optional=True,
            tooltip="Settings for your graphics card, from LAMP Training Preset. Overrides batch, "
            "optimizer, update, rank and checkpointing.",
        ),
        setting_input("keep_motions", SaveConfig, optional=True),
        setting_input("update", optional=True),
        setting_input("timestep_shift", optional=True),
    ]


NODES: list[type[io.ComfyNode]] = [Trainer]
