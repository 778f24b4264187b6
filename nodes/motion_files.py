"""Make a motion of other files: merge two, convert an official one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..lamp.errors import LampError
from ..lamp.hosts.comfy.binding import unet_of, unpatched_weights
from ..lamp.method.architecture import base_hash
from ..lamp.motion_file.convert import convert_official
from ..lamp.motion_file.file import MotionFile
from ..lamp.motion_file.merge import merge_motions
from .common import LampMotion, aliases, named_errors, upstream_name
from .model_paths import shown_folders
from .progress import NodeProgress


def _weight(name: str, which: str) -> Any:
    return io.Float.Input(
        name,
        default=0.5,
        min=-2.0,
        max=4.0,
        step=0.05,
        tooltip=f"How strong the {which} motion is in the result: 1 is as it was trained, 0 "
        "leaves it out.",
    )


class MergeMotions(io.ComfyNode):
    """Two motions in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_MergeMotions",
            display_name="Merge LAMP Motions",
            category="LAMP/motion",
            description="Makes one motion of two, each with its weight, for Save LAMP Motion. "
            "Both must be for the same kind of model.",
            inputs=[
                LampMotion.Input("first", tooltip="A motion, from Load LAMP Motion."),
                LampMotion.Input("second", tooltip="Another one, from a second Load LAMP Motion."),
                _weight("first_weight", "first"),
                _weight("second_weight", "second"),
            ],
            outputs=[
                LampMotion.Output(
                    "motion",
                    display_name="motion",
                    tooltip="The merged motion: save it with Save LAMP Motion, then load it.",
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
        progress = NodeProgress(getattr(cls.hidden, "unique_id", None)).update
        return io.NodeOutput(merge_motions(first, second, (first_weight, second_weight), progress))


def official_folders() -> dict[str, Path]:
    """Folders of `models/diffusers` that hold a UNet, by name."""
    found: dict[str, Path] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for folder in sorted(Path(root).glob("*/unet")):
            found.setdefault(folder.parent.name, folder.parent)
    return found


class ConvertOfficial(io.ComfyNode):
    """An official LAMP checkpoint as a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ConvertOfficial",
            display_name="Convert Official LAMP Checkpoint",
            category="LAMP/motion",
            description="Takes the motion out of a folder that the official LAMP training wrote. "
            "The authors' weights are CC BY-NC 4.0: not for commercial use.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The checkpoint that the motion was trained on, as it is, without "
                    "LoRAs: Stable Diffusion 1.4 for the authors' motions.",
                ),
                io.Combo.Input(
                    "folder",
                    options=list(official_folders()),
                    tooltip="A folder in models/diffusers with unet/diffusion_pytorch_model.bin "
                    "(or .safetensors) of the official training in it.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    tooltip="The words that the motion was trained with, such as a horse runs; "
                    "they are kept in the file.",
                ),
            ],
            outputs=[
                LampMotion.Output(
                    "motion",
                    display_name="motion",
                    tooltip="The motion: save it with Save LAMP Motion, then load it.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            **aliases("import official checkpoint", "convert checkpoint"),
        )

    @classmethod
    @named_errors("Convert Official LAMP Checkpoint", ("folder",))
    def execute(cls, model: Any, folder: str, prompt: str = "") -> io.NodeOutput:
        place = official_folders().get(folder)
        if place is None:
            raise LampError(
                f"There is no folder '{folder[:100]}' with unet in it in "
                f"{shown_folders('diffusers')}: put the official one there and press R to refresh "
                "the list."
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
            progress=NodeProgress(getattr(cls.hidden, "unique_id", None)).update,
        )
        return io.NodeOutput(file)


NODES: list[type[io.ComfyNode]] = [MergeMotions, ConvertOfficial]
