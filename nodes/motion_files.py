"""Save, describe, merge and convert motions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..lamp.clips.images import thumbnail_uri
from ..lamp.errors import LampError
from ..lamp.hosts.comfy.binding import unet_of, unpatched_weights
from ..lamp.hosts.comfy.folders import shown, shown_folders
from ..lamp.method.architecture import base_hash
from ..lamp.motion_file.compress import SIZE
from ..lamp.motion_file.convert import convert_official
from ..lamp.motion_file.describe import describe_motion
from ..lamp.motion_file.file import MotionFile, save_motion
from ..lamp.motion_file.merge import merge_motions
from ..lamp.motion_file.provenance import history
from ..lamp.plain import log
from .common import (
    LampMotion,
    advanced,
    aliases,
    motion_folder,
    named_errors,
    plain_errors,
    progress_of,
    upstream_name,
    workflow_metadata,
)


class SaveMotion(io.ComfyNode):
    """Save a motion to the motion folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_SaveMotion",
            display_name="Save LAMP Motion",
            category="LAMP/motion",
            description="Saves a motion to models/lamp_motion in fp16, with its metadata in the "
            "file header. Never overwrites an existing file.",
            inputs=[
                LampMotion.Input("motion", tooltip="Motion to save."),
                io.String.Input(
                    "filename_prefix",
                    default="LAMP/motion",
                    tooltip="File name in models/lamp_motion. A number is added; %year%, "
                    "%month% and %day% are replaced by the date.",
                ),
                io.String.Input(
                    "license",
                    default="",
                    optional=True,
                    tooltip="License of the motion, for the file header, such as CC-BY-4.0. Empty "
                    "keeps the current one.",
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip="Image for model browsers, scaled down. Of a batch, only the first "
                    "image is used. Without it, the current one is kept.",
                ),
                io.Combo.Input(
                    "compact",
                    options=["off", "on"],
                    default="off",
                    optional=True,
                    tooltip="on compresses the file to less than a tenth of its size, for sharing. "
                    "Compression is lossy and takes minutes for SD 1.x, so keep the full file as "
                    "well.",
                ),
                io.Float.Input(
                    "size",
                    default=SIZE,
                    min=0.02,
                    max=0.5,
                    step=0.005,
                    optional=True,
                    tooltip="Size of a compact file as a fraction of the full file. Larger keeps "
                    "more of the motion.",
                    **advanced(io.Float.Input),
                ),
            ],
            outputs=[
                io.String.Output(
                    "path", display_name="path", tooltip="Full path of the saved file."
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
            progress=progress_of(cls).update,
        )
        place = shown(path)
        log.info("LAMP: saved %s", place)
        return io.NodeOutput(str(path), ui=ui.PreviewText(place))


class MotionInfo(io.ComfyNode):
    """Describe a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_MotionInfo",
            display_name="LAMP Motion Info",
            category="LAMP/motion",
            description="Shows how a motion was trained, which models it fits and how to "
            "prompt it.",
            inputs=[
                LampMotion.Input("motion", tooltip="Motion from Load LAMP Motion or LAMP Trainer.")
            ],
            outputs=[
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="Description of the motion, one fact per line.",
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


def _weight(name: str, which: str) -> Any:
    return io.Float.Input(
        name,
        default=0.5,
        min=-2.0,
        max=4.0,
        step=0.05,
        tooltip=f"Strength of the {which} motion in the result: 1 is as trained, 0 leaves it out.",
    )


class MergeMotions(io.ComfyNode):
    """Merge two motions into one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_MergeMotions",
            display_name="Merge LAMP Motions",
            category="LAMP/motion",
            description="Merges two motions into one, with a weight for each. Both must be for the "
            "same model family.",
            inputs=[
                LampMotion.Input(
                    "first",
                    tooltip="Motion from Load LAMP Motion. The result records the size and number "
                    "of frames only if both motions have the same.",
                ),
                LampMotion.Input("second", tooltip="Motion from a second Load LAMP Motion."),
                _weight("first_weight", "first"),
                _weight("second_weight", "second"),
            ],
            outputs=[
                LampMotion.Output(
                    "motion",
                    display_name="motion",
                    tooltip="Merged motion. Save it with Save LAMP Motion, then load it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            **aliases("mix motions", "blend motions", "combine motions"),
        )

    @classmethod
    @named_errors("Merge LAMP Motions")
    def execute(
        cls,
        first: MotionFile,
        second: MotionFile,
        first_weight: float = 0.5,
        second_weight: float = 0.5,
    ) -> io.NodeOutput:
        weights = (first_weight, second_weight)
        return io.NodeOutput(merge_motions(first, second, weights, progress_of(cls).update))


def official_folders() -> dict[str, Path]:
    """The folders in `models/diffusers` that contain a UNet, by name."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for folder in sorted(Path(root).glob("*/unet")):
            found.setdefault(folder.parent.name, folder.parent)
    return found


class ConvertOfficial(io.ComfyNode):
    """Convert an official LAMP checkpoint to a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ConvertOfficial",
            display_name="Convert Official LAMP Checkpoint",
            category="LAMP/motion",
            description="Converts a checkpoint of the official LAMP training code to a motion. The "
            "authors' checkpoints are CC BY-NC 4.0: no commercial use.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The checkpoint that the motion was trained on, without LoRAs. For the "
                    "authors' motions this is Stable Diffusion 1.4.",
                ),
                io.Combo.Input(
                    "folder",
                    options=list(official_folders()),
                    tooltip="Folder in models/diffusers that contains the folder unet of the "
                    "official training, with diffusion_pytorch_model.bin (or .safetensors).",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    tooltip="Prompt that the motion was trained with, such as: a horse runs. It is "
                    "stored in the motion file.",
                ),
            ],
            outputs=[
                LampMotion.Output(
                    "motion",
                    display_name="motion",
                    tooltip="Converted motion. Save it with Save LAMP Motion, then load it.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **aliases("import official checkpoint", "convert checkpoint"),
        )

    @classmethod
    @plain_errors
    def fingerprint_inputs(cls, folder: str | None = None, **_: Any) -> str:
        """Read a checkpoint again when its files have been written again."""
        place = official_folders().get(folder) if folder else None
        if place is None:
            return "missing"
        states = [(path.name, path.stat()) for path in sorted((place / "unet").iterdir())]
        return str([(name, state.st_mtime_ns, state.st_size) for name, state in states])

    @classmethod
    @named_errors("Convert Official LAMP Checkpoint", ("folder",))
    def execute(cls, model: Any, folder: str, prompt: str = "") -> io.NodeOutput:
        place = official_folders().get(folder)
        if place is None:
            raise LampError(
                f"There is no folder '{folder[:100]}' with a folder unet in "
                f"{shown_folders('diffusers')}. Put the official checkpoint there and press R."
            )
        unet, weights = unet_of(model), unpatched_weights(model, "diffusion_model")
        file = convert_official(
            place,
            unet,
            weights=weights,
            base_model=upstream_name(cls.hidden.prompt, cls.hidden.unique_id, "model")
            if cls.hidden
            else "",
            base_hash=base_hash(unet, weights),
            prompt=prompt.strip(),
            progress=progress_of(cls).update,
        )
        return io.NodeOutput(file)


NODES: list[type[io.ComfyNode]] = [SaveMotion, MotionInfo, MergeMotions, ConvertOfficial]
