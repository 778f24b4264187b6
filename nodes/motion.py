"""Load, save and describe motions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..lamp.clips.images import thumbnail_uri
from ..lamp.errors import LampError
from ..lamp.hosts.comfy.binding import BoundMotion, bind, image_model_hash, load_motion, unet_of
from ..lamp.method.architecture import map_unet
from ..lamp.method.masks import MotionMask, parse_strengths
from ..lamp.motion_file.compress import SIZE
from ..lamp.motion_file.describe import describe_motion
from ..lamp.motion_file.file import MotionFile, load_motion_file, save_motion
from ..lamp.motion_file.provenance import history
from ..lamp.plain import log
from .common import (
    LampMotion,
    advanced,
    aliases,
    motion_folder,
    named_errors,
    plain_errors,
    workflow_metadata,
)
from .model_paths import MOTION_FOLDER, shown, shown_folders
from .progress import NodeProgress

# Load Image gives this size of black for a picture without transparency.
_NO_MASK = (64, 64)
# Where the authors list their checkpoints and clips.
PUBLISHED = "https://github.com/RQ-Wu/LAMP"
_BLACK = 1 / 512  # less than any level of a picture with 8 bits


class LoadMotion(io.ComfyNode):
    """Bind a motion file to a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_LoadMotion",
            display_name="Load LAMP Motion",
            category="LAMP/motion",
            description="Gives a MODEL a learned motion. The MODEL then moves the first frame of "
            "the latent in any sampler, with LoRAs and ControlNets. Several of these nodes in a "
            "row let their motions act side by side, each in its own place and time.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL that draws the video, of the family that the motion was "
                    "trained for, mostly SD 1.x; then SD-XL only draws the first frame. LoRAs may "
                    "come before or after this node, and so may another Load LAMP Motion.",
                ),
                io.Combo.Input(
                    "motion_name",
                    options=folder_paths.get_filename_list(MOTION_FOLDER),
                    tooltip="A motion file in models/lamp_motion.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=4.0,
                    step=0.05,
                    tooltip="How strongly the video moves: 0 is no motion, 1 the motion as it "
                    "was trained. A motion that was trained too long often looks better at 0.7.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of its noise every frame shares with the others; 0.2 is "
                    "the paper's value, 0 turns it off. Noise from Shared Noise Latents is "
                    "shared already and stays as it is. Of several motions on one MODEL the "
                    "last one's counts.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the sampling after which the motion sets in.",
                    **advanced(io.Float.Input),
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of the sampling after which the motion stops acting.",
                    **advanced(io.Float.Input),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the picture may move, of any size: one mask for all "
                    "frames or one for each. Leave room for the path of the object. LAMP Motion "
                    "Map makes one. The mask of Load Image counts only if the picture has one.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.05,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    optional=True,
                    tooltip="How far the mask's edges fade to both sides, as a share of its "
                    "shorter side.",
                ),
                io.Float.Input(
                    "hold_still",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How firmly the picture outside the mask stays as in frame 1. At 0 the "
                    "motion is only left out there, and the ground may flicker.",
                    **advanced(io.Float.Input),
                ),
                io.String.Input(
                    "frame_strengths",
                    default="",
                    optional=True,
                    tooltip="Factors on strength along the video, such as 1, 1, 0.5: one a frame, "
                    "or fewer, which are spread over the video with straight lines between. Empty "
                    "is 1 throughout.",
                    **advanced(io.String.Input),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "moving_model",
                    display_name="model",
                    tooltip="The MODEL with the motion, for LAMP KSampler and the stock samplers.",
                ),
                LampMotion.Output(
                    "motion",
                    display_name="motion",
                    tooltip="The motion as it stands in the file, to inspect or to save.",
                ),
            ],
            **aliases("motion lora", "image to video", "animate image", "few-shot video"),
        )

    @classmethod
    @plain_errors
    def validate_inputs(cls, motion_name: str | None = None) -> bool | str:
        """A missing file is told before the first frame is drawn, not after it."""
        try:
            return motion_name is None or bool(_motion_path(motion_name))
        except LampError as error:
            return str(error)

    @classmethod
    @plain_errors
    def fingerprint_inputs(cls, motion_name: str | None = None, **_: Any) -> str:
        """A file that was written again is read again."""
        path = folder_paths.get_full_path(MOTION_FOLDER, motion_name) if motion_name else None
        if path is None:
            return "missing"
        state = os.stat(path)
        return f"{state.st_mtime_ns} {state.st_size}"

    @classmethod
    @named_errors("Load LAMP Motion", ("motion_name",))
    def execute(
        cls,
        model: Any,
        motion_name: str,
        strength: float = 1.0,
        alpha: float = 0.2,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        mask: Any = None,
        feather: float = 0.05,
        hold_still: float = 1.0,
        frame_strengths: str = "",
    ) -> io.NodeOutput:
        if start_percent >= end_percent:
            raise LampError(
                f"start_percent is {start_percent:g} and end_percent {end_percent:g}, so the "
                "motion would never act: set start_percent below end_percent (0 and 1)."
            )
        strengths = parse_strengths(frame_strengths) or [1.0]
        mask = _given_mask(mask)
        motion_mask = MotionMask(mask, feather=feather, hold=hold_still, strengths=strengths)
        file = load_motion_file(_motion_path(motion_name), map_unet(unet_of(model)))
        _warn_of_another_base(model, file)
        bound = BoundMotion(
            load_motion(model, file),
            groupnorm=file.config.groupnorm,
            strength=strength,
            alpha=alpha,
            start_percent=start_percent,
            end_percent=end_percent,
            motion_mask=None if motion_mask.is_whole else motion_mask,
        )
        return io.NodeOutput(bind(model, bound), file)


def _given_mask(mask: Any) -> Any:
    """The mask, or None for the one that stands for none.

    Raises:
        LampError: it lets nothing move.
    """
    if mask is None or mask.ndim < 2 or not mask.numel() or not mask.isfinite().all():
        return mask  # the last three are named where masks are made
    # Of masks for each frame the first one is of no account: frame 1 never moves.
    later = mask[1:] if mask.ndim > 2 and len(mask) > 1 else mask
    if (later > _BLACK).any():
        return mask
    if tuple(mask.shape[-2:]) == _NO_MASK:
        log.info("Load LAMP Motion: the picture has no mask, so the motion acts everywhere.")
        return None
    raise LampError(
        f"The mask of {mask.shape[-1]} x {mask.shape[-2]} is black everywhere, so nothing would "
        "move: paint white where the picture may move (Invert Mask turns it over), disconnect it, "
        "or set strength to 0 for a still video."
    )


def _warn_of_another_base(model: Any, file: MotionFile) -> None:
    """A motion carries over to other checkpoints of its family, mostly; say so when it has to."""
    trained = file.config.base_hash
    if trained and image_model_hash(model) not in ("", trained):
        log.warning(
            "Load LAMP Motion: %s was trained on the checkpoint '%s'; the connected one is "
            "another. If the video looks poor, try that one.",
            file.name,
            file.config.base_model or "unknown",
        )


def _motion_path(name: str) -> Path:
    try:
        path = folder_paths.get_full_path(MOTION_FOLDER, name)
    except (OSError, ValueError):  # another drive of Windows, a NUL, a name that is too long
        path = None
    if path is None:
        raise LampError(
            f"There is no motion file '{name[:100]}' in {shown_folders(MOTION_FOLDER)}: put it "
            "there and press R to refresh the list. Train one with LAMP Trainer, or convert one of "
            f"the authors', listed at {PUBLISHED}, with Convert Official LAMP Checkpoint."
        )
    return Path(path)


class SaveMotion(io.ComfyNode):
    """Write a motion into the model folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_SaveMotion",
            display_name="Save LAMP Motion",
            category="LAMP/motion",
            description="Writes a motion into models/lamp_motion, in fp16 and with all that is "
            "known about it in its header. An existing file is never overwritten.",
            inputs=[
                LampMotion.Input("motion", tooltip="The motion to save, from LAMP Trainer."),
                io.String.Input(
                    "filename_prefix",
                    default="LAMP/motion",
                    tooltip="The beginning of the file's name below models/lamp_motion; a number "
                    "is added, and %year%, %month% and %day% are filled in.",
                ),
                io.String.Input(
                    "license",
                    default="",
                    optional=True,
                    tooltip="The license of this motion, for the file's header, such as CC-BY-4.0. "
                    "Empty keeps the one that it has.",
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip="A picture that model browsers show for the file, made small; of "
                    "several images the first one.",
                ),
                io.Combo.Input(
                    "compact",
                    options=["off", "on"],
                    default="off",
                    optional=True,
                    tooltip="on writes less than a tenth of the full file, for sharing: it samples "
                    "as fast, a little is left out. It takes minutes for SD 1.x. Keep the full "
                    "one, too: for merging, and as nothing left out comes back.",
                ),
                io.Float.Input(
                    "size",
                    default=SIZE,
                    min=0.02,
                    max=0.5,
                    step=0.005,
                    optional=True,
                    tooltip="The share of the full file that a compact one takes: more bytes keep "
                    "more of the motion.",
                    **advanced(io.Float.Input),
                ),
            ],
            outputs=[
                io.String.Output(
                    "path", display_name="path", tooltip="The full path of the file written."
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            **aliases("export motion", "write motion"),
        )

    @classmethod
    @named_errors("Save LAMP Motion")
    def execute(
        cls,
        motion: MotionFile,
        filename_prefix: str,
        license: str = "",
        thumbnail: Any = None,
        compact: str = "off",
        size: float = SIZE,
    ) -> io.NodeOutput:
        known = motion.metadata
        path = motion_folder(filename_prefix)
        path = save_motion(
            path.with_name(f"{path.name}.safetensors"),
            motion.state,
            motion.config,
            size=size if compact == "on" else 1.0,
            license_name=license.strip() or known.get("modelspec.license", ""),
            thumbnail=known.get("modelspec.thumbnail", "")
            if thumbnail is None
            else thumbnail_uri(thumbnail),
            extra={**history(known), **workflow_metadata(cls.hidden)},
            new=True,
            progress=NodeProgress(getattr(cls.hidden, "unique_id", None)).update,
        )
        place = shown(path)
        log.info("LAMP: saved %s", place)
        return io.NodeOutput(str(path), ui=ui.PreviewText(place))


class MotionInfo(io.ComfyNode):
    """Tell what a motion is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_MotionInfo",
            display_name="LAMP Motion Info",
            category="LAMP/motion",
            description="Shows what a motion was trained on, for which models it is, and how to "
            "prompt it.",
            inputs=[
                LampMotion.Input("motion", tooltip="The motion, from its loader or its trainer.")
            ],
            outputs=[
                io.String.Output(
                    "text", display_name="text", tooltip="One line for each thing that is known."
                ),
            ],
            is_output_node=True,
            **aliases("inspect motion", "motion metadata"),
        )

    @classmethod
    @named_errors("LAMP Motion Info")
    def execute(cls, motion: MotionFile) -> io.NodeOutput:
        text = describe_motion(motion)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


NODES: list[type[io.ComfyNode]] = [LoadMotion, SaveMotion, MotionInfo]
