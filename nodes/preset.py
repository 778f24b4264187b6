"""LAMP Training Preset: training settings that fit a graphics card."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..lamp.clips.images import LATENT_STRIDE
from ..lamp.training.memory.cards import CardSettings
from ..lamp.training.optimizers import check_package, installed_optimizers
from ..lamp.training.recipe import CARDS
from .common import advanced, aliases, named_errors, progress_of

LampPreset = io.Custom("LAMP_PRESET")
PRESET = "preset"  # leaves a setting to the preset
_SIZE = (16, 512, 320)  # frames, width and height if there is enough memory (paper sec. 4.1)


class TrainingPreset(io.ComfyNode):
    """Choose training settings by the memory of a graphics card."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_TrainingPreset",
            display_name="LAMP Training Preset",
            category="LAMP/training",
            description="Chooses size, frames, batch, optimizer, update, rank and checkpointing "
            "for a graphics card, by the memory estimate, and shows them before the training "
            "starts. What you set here yourself stays.",
            is_experimental=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="MODEL that the trainer is connected to."),
                io.Combo.Input(
                    "card",
                    options=list(CARDS),
                    tooltip="Memory of the graphics card. 1 GB of it is left to the desktop. auto "
                    "uses the memory that is free when this node runs, without what other models "
                    "still hold; change a value here to measure again.",
                ),
                _number("width", 0, 2048, LATENT_STRIDE, 0),
                _number("height", 0, 2048, LATENT_STRIDE, 0),
                _number("frames", 0, 1024, 1, 0),
                _number("batch", 0, 1024, 1, 0),
                _number("rank", -1, 1024, 1, -1),
                _menu(
                    "optimizer",
                    installed_optimizers(),
                    " adamw and muon are always listed; adamw8bit, prodigy, schedulefree and came "
                    "if their packages are installed.",
                ),
                _menu("checkpointing", ["on", "off"]),
            ],
            outputs=[
                LampPreset.Output(display_name="preset", tooltip="For preset of LAMP Trainer."),
                io.Int.Output("clip_width", display_name="width", tooltip=_FOR_CLIPS),
                io.Int.Output("clip_height", display_name="height", tooltip=_FOR_CLIPS),
                io.Int.Output("clip_frames", display_name="frames", tooltip=_FOR_CLIPS),
                io.String.Output(display_name="text", tooltip="The settings and the estimate."),
            ],
            **aliases("vram", "graphics card", "memory", "training preset"),
        )

    @classmethod
    @named_errors("LAMP Training Preset", ("optimizer",))
    def execute(
        cls,
        model: Any,
        card: str,
        width: int = 0,
        height: int = 0,
        frames: int = 0,
        batch: int = 0,
        rank: int = -1,
        optimizer: str = PRESET,
        checkpointing: str = PRESET,
    ) -> io.NodeOutput:
        from ..lamp.hosts.comfy.memory import card_settings
        from ..lamp.hosts.comfy.training import check_trainable

        check_trainable(model)
        if optimizer != PRESET:
            check_package(optimizer)
        size = {"frames": frames, "width": width, "height": height}
        given = {name: value for name, value in size.items() if value}
        fixed: dict[str, Any] = {name: given[name] // _UNITS[name] for name in given}
        fixed |= {"batch": batch} if batch else {}
        fixed |= {"rank": rank} if rank >= 0 else {}
        fixed |= {"optimizer": optimizer} if optimizer != PRESET else {}
        if checkpointing != PRESET:
            fixed["gradient_checkpointing"] = checkpointing == "on"
        progress_of(cls).say("estimating memory")
        chosen: CardSettings = card_settings(model, card, _SIZE, fixed)
        sides, text = chosen.clips, chosen.describe()
        return io.NodeOutput(
            chosen,
            sides["width"],
            sides["height"],
            sides["frames"],
            text,
            ui=ui.PreviewText(text),
        )


_UNITS = {"frames": 1, "width": LATENT_STRIDE, "height": LATENT_STRIDE}
_FOR_CLIPS = "For the input of the same name of LAMP Training Clips."


def _number(name: str, low: int, high: int, step: int, default: int) -> Any:
    return io.Int.Input(
        name,
        default=default,
        min=low,
        max=high,
        step=step,
        optional=True,
        tooltip=f"Value of {name} that you choose yourself. {default} leaves it to the preset.",
        **advanced(io.Int.Input),
    )


def _menu(name: str, options: list[str], more: str = "") -> Any:
    return io.Combo.Input(
        name,
        options=[PRESET, *options],
        default=PRESET,
        optional=True,
        tooltip=f"Value of {name} that you choose yourself. preset leaves it to the preset.{more}",
        **advanced(io.Combo.Input),
    )


NODES: list[type[io.ComfyNode]] = [TrainingPreset]
