"""Load LAMP Motion."""

from __future__ import annotations

import os
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..lamp.errors import LampError
from ..lamp.hosts.comfy.binding import BoundMotion, bind, image_model_hash, load_motion, unet_of
from ..lamp.hosts.comfy.toy import check_toy_motion
from ..lamp.method.architecture import map_unet
from ..lamp.method.masks import MotionMask, parse_strengths
from ..lamp.motion_file.file import MotionFile, load_motion_file
from .common import (
    LampMotion,
    advanced,
    aliases,
    fraction_input,
    named_errors,
    plain_errors,
    progress_of,
)
from .model_paths import MOTION_FOLDER, motion_path

# Load Image returns a black mask of this size for an image without transparency.
_NO_MASK = (64, 64)
_BLACK = 1 / 512  # below any level but 0 of an image with 8 bits


class LoadMotion(io.ComfyNode):
    """Apply a motion file to a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_LoadMotion",
            display_name="Load LAMP Motion",
            category="LAMP/motion",
            description="Applies a motion to a MODEL, which then animates the first frame of the "
            "latent. Works with the stock samplers, LoRAs and ControlNets. Chained loaders add "
            "their motions.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="MODEL of the family that the motion was trained on, usually SD 1.x. "
                    "Use SD-XL only for the first frame. LoRAs may come before or after this node.",
                ),
                io.Combo.Input(
                    "motion_name",
                    options=folder_paths.get_filename_list(MOTION_FOLDER),
                    tooltip="Motion file in models/lamp_motion. Press R to refresh the list.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Strength of the motion: 0 is none, 1 is as trained. If the motion was "
                    "trained too long and the image suffers, try 0.7.",
                ),
                fraction_input(
                    "alpha",
                    0.2,
                    "Share of common noise in the initial noise of each frame. The paper uses 0.2; "
                    "0 turns it off. Of chained motions, the last one's value counts.",
                ),
                fraction_input(
                    "start_percent",
                    0.0,
                    "Fraction of sampling at which the motion starts.",
                    step=0.01,
                    **advanced(io.Float.Input),
                ),
                fraction_input(
                    "end_percent",
                    1.0,
                    "Fraction of sampling at which the motion stops.",
                    step=0.01,
                    **advanced(io.Float.Input),
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the image may move: one mask for all frames, or one per "
                    "frame. Another aspect ratio than the video's is stretched. Include the path "
                    "of the object. LAMP Motion Map can make it.",
                ),
                io.Float.Input(
                    "feather",
                    default=0.05,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    optional=True,
                    tooltip="How far the edge of the mask fades to each side, as a fraction of the "
                    "mask's shorter side.",
                ),
                fraction_input(
                    "hold_still",
                    1.0,
                    "How strongly the image outside the mask keeps frame 1. At 0 the motion is "
                    "only left out there, and the background may flicker.",
                    optional=True,
                    **advanced(io.Float.Input),
                ),
                io.String.Input(
                    "frame_strengths",
                    default="",
                    optional=True,
                    tooltip="Factors on strength over the video, such as 1, 1, 0.5: one per frame, "
                    "or fewer, which are interpolated linearly. Empty is 1 throughout.",
                    **advanced(io.String.Input),
                ),
                io.Float.Input(
                    "motion_guidance",
                    default=1.0,
                    min=1.0,
                    max=5.0,
                    step=0.1,
                    optional=True,
                    tooltip="Amplifies the motion as cfg amplifies the prompt. 1 is off; 1.5 suits "
                    "most motions, 2 a weak one. Free if cfg is at least this high, otherwise "
                    "sampling takes twice as long. Use one value for chained motions.",
                    **advanced(io.Float.Input),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "moving_model",
                    display_name="model",
                    tooltip="MODEL with the motion, for LAMP KSampler and the stock samplers.",
                ),
                LampMotion.Output(
                    "motion",
                    display_name="motion",
                    tooltip="The motion of the file, unchanged, to inspect, merge or save.",
                ),
            ],
            **aliases(
                "image to video", "animate", "animate image", "video", "img2vid", "motion lora"
            ),
        )

    @classmethod
    @plain_errors
    def validate_inputs(cls, motion_name: str | None = None) -> bool | str:
        """Report a missing file before the graph runs."""
        try:
            return motion_name is None or bool(motion_path(motion_name))
        except LampError as error:
            return str(error)

    @classmethod
    @plain_errors
    def fingerprint_inputs(cls, motion_name: str | None = None, **_: Any) -> str:
        """Read a file again when it has been written again."""
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
        motion_guidance: float = 1.0,
    ) -> io.NodeOutput:
        if start_percent >= end_percent:
            raise LampError(
                f"start_percent is {start_percent:g} and end_percent is {end_percent:g}, so the "
                "motion would never act. Set start_percent below end_percent, such as 0 and 1."
            )
        strengths = parse_strengths(frame_strengths) or [1.0]
        warn = progress_of(cls).warn
        if mask is not None and _is_no_mask(mask):
            warn("The image that mask comes from has no mask: the motion acts everywhere.")
            mask = None
        motion_mask = MotionMask(mask, feather=feather, hold=hold_still, strengths=strengths)
        file = load_motion_file(motion_path(motion_name), map_unet(unet_of(model)))
        if warning := _another_base(model, file):
            warn(warning)
        bound = BoundMotion(
            load_motion(model, file),
            groupnorm=file.config.groupnorm,
            trained_frames=file.config.frames,
            strength=strength,
            alpha=alpha,
            start_percent=start_percent,
            end_percent=end_percent,
            motion_guidance=motion_guidance,
            motion_mask=None if motion_mask.is_identity else motion_mask,
        )
        return io.NodeOutput(bind(model, bound), file)


def _is_no_mask(mask: Any) -> bool:
    """Whether it is the black mask that Load Image returns for "no mask".

    Raises:
        LampError: the mask is black everywhere.
    """
    if mask.ndim < 2 or not mask.numel() or not mask.isfinite().all():
        return False  # `MotionMask` refuses it
    # The first of several masks has no effect: frame 1 never moves.
    later = mask[1:] if mask.ndim > 2 and len(mask) > 1 else mask
    if (later > _BLACK).any():
        return False
    if tuple(mask.shape[-2:]) == _NO_MASK:
        return True
    raise LampError(
        f"The mask ({mask.shape[-1]} x {mask.shape[-2]}) is black everywhere, so nothing would "
        "move. Paint white where the image may move (Invert Mask swaps black and white), "
        "disconnect the mask, or set strength to 0 for a still video."
    )


def _another_base(model: Any, file: MotionFile) -> str:
    """A warning if the motion was trained on another checkpoint. Most motions fit other ones of
    their family, too; the toy base of another world is refused."""
    trained = file.config.base_hash
    if not trained or image_model_hash(model) in ("", trained):
        return ""
    check_toy_motion(model, file)
    return (
        f"{file.name} was trained on the checkpoint '{file.config.base_model or 'unknown'}', but "
        "another one is connected. If the video looks poor, use that checkpoint."
    )


NODES: list[type[io.ComfyNode]] = [LoadMotion]
