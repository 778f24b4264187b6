"""LAMP First-Frame Condition: from an image to the latent of a video."""

from __future__ import annotations

from typing import Any, get_args

import torch
from comfy_api.latest import io

from ..lamp.clips.images import LATENT_STRIDE, Fit, check_size, fit_images
from ..lamp.errors import LampError
from ..lamp.hosts.comfy.toy import toy_side
from ..lamp.hosts.comfy.vae import encode_first_frame, first_picture
from ..lamp.motion_file.file import MotionFile
from .common import LampMotion, aliases, named_errors, plain_errors, progress_of

_NAME = "LAMP First-Frame Condition"
_MAX_SIZE = 8192
_MAX_FRAMES = 1024
_UNCONNECTED = object()


class FirstFrameCondition(io.ComfyNode):
    """Encode the first frame and append empty frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_FirstFrameCondition",
            display_name=_NAME,
            category="LAMP/sampling",
            description="Makes the latent of a video from its first frame. Frame 1 holds the "
            "encoded image, the other frames are empty. Sampling leaves frame 1 unchanged.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Vae.Input(
                    "vae",
                    tooltip="VAE of the checkpoint that generates the video (SD 1.x, not SD-XL).",
                ),
                io.Image.Input(
                    "image",
                    tooltip="The first frame: a photo, or an image from any model. Of a batch, "
                    "only the first image is used.",
                ),
                _size_input(
                    "width",
                    512,
                    "Width of the video in pixels, a multiple of 8. Works best near the width "
                    "that the motion was trained at. 0 takes it from motion.",
                ),
                _size_input(
                    "height",
                    320,
                    "Height of the video in pixels, a multiple of 8. 0 takes it from motion.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=0,
                    max=_MAX_FRAMES,
                    tooltip="Number of frames, including the first one. Works best at the number "
                    "that the motion was trained on, usually 16. 0 takes it from motion.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(get_args(Fit)),
                    default="crop",
                    tooltip="How to fit an image with another aspect ratio: crop cuts the edges, "
                    "pad adds black bars, stretch distorts the image.",
                ),
                LampMotion.Input(
                    "motion",
                    optional=True,
                    tooltip="The motion of Load LAMP Motion. Needed where width, height or frames "
                    "is 0, and for a motion that was trained on SD-XL, with the SD-XL VAE in vae.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip="Latent of the video: the encoded first frame, followed by zeros.",
                ),
            ],
            **aliases("image to video", "start image", "animate image", "img2vid", "i2v"),
        )

    @classmethod
    @plain_errors
    def validate_inputs(
        cls,
        width: int | None = None,
        height: int | None = None,
        frames: int | None = None,
        motion: object = _UNCONNECTED,
    ) -> bool | str:
        """Refuse a wrong size before anything runs; values from links, also motion, are None."""
        try:
            if motion is _UNCONNECTED:
                for name, value in {"width": width, "height": height, "frames": frames}.items():
                    if value == 0:
                        _of_motion(name, None)
            _check_video(width or LATENT_STRIDE, height or LATENT_STRIDE, frames or 2)
        except LampError as error:
            return str(error)
        return True

    @classmethod
    @named_errors(_NAME)
    def execute(
        cls,
        vae: Any,
        image: torch.Tensor,
        width: int = 512,
        height: int = 320,
        frames: int = 16,
        fit: Fit = "crop",
        motion: MotionFile | None = None,
    ) -> io.NodeOutput:
        width = width or _of_motion("width", motion)
        height = height or _of_motion("height", motion)
        frames = frames or _of_motion("frames", motion)
        _check_video(width, height, frames)
        warn = progress_of(cls).warn
        if len(image) > 1:
            warn(f"image has {len(image)} images: only the first is used.")
        side = toy_side(vae)
        if side and (width, height) != (side, side):
            warn(
                f"The video is {width} x {height}, but this toy base draws {side} x {side}: set "
                f"width and height to {side}."
            )
        picture = fit_images(first_picture(image, warn), width, height, fit)
        family = "sd1" if motion is None else motion.config.family
        first = encode_first_frame(vae, picture, family)
        others = first.new_zeros(frames - 1, *first.shape[1:])
        return io.NodeOutput({"samples": torch.cat([first, others])})


def _size_input(name: str, default: int, tooltip: str) -> Any:
    return io.Int.Input(
        name,
        default=default,
        min=0,
        max=_MAX_SIZE,
        step=LATENT_STRIDE,
        tooltip=tooltip,
    )


def _of_motion(name: str, motion: MotionFile | None) -> int:
    """A measure that the motion was trained at.

    Raises:
        LampError: no motion is connected, or it does not tell.
    """
    if motion is None:
        raise LampError(f"{name} is 0: enter a number, or connect motion to take it from there.")
    value = int(getattr(motion.config, name))
    if not value:
        raise LampError(
            f"{name} is 0, but {motion.name} does not record the {name} it was trained at: enter "
            "a number."
        )
    return value


def _check_video(width: int, height: int, frames: int) -> None:
    check_size(width, height)
    if max(width, height) > _MAX_SIZE:
        raise LampError(
            f"The video is {width} x {height}, but no side may be longer than {_MAX_SIZE} pixels. "
            "Use 512 x 320, for example."
        )
    if not 2 <= frames <= _MAX_FRAMES:
        raise LampError(f"frames is {frames}: use 2 to {_MAX_FRAMES}, for example 16.")


NODES: list[type[io.ComfyNode]] = [FirstFrameCondition]
