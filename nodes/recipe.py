"""LAMP Training Recipe, and inputs made from the settings of a training."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.settings import find_setting
from ..lamp.training.recipe import TrainConfig
from .common import advanced, aliases, named_errors

LampRecipe = io.Custom("LAMP_RECIPE")


def setting_input(name: str, config: type = TrainConfig, **others: Any) -> Any:
    """The input of one setting, see `lamp.training.recipe.setting`.

    Args:
        others: more of the host's options, or others than the setting's own; `id` for another name.
    """
    field = find_setting(config, name)
    known, options = field.metadata, {"id": name, "tooltip": field.metadata["help"]}
    kind: Any = io.Combo.Input
    if known["choices"]:
        options["options"] = list(known["choices"])
    else:
        kind = io.Float.Input if isinstance(field.default, float) else io.Int.Input
        options |= {"default": field.default, "min": known["low"], "max": known["high"]}
    if known["step"]:
        options["step"] = known["step"]
    if known["advanced"]:
        options |= advanced(kind)
    return kind(**options | others)


class Recipe(io.ComfyNode):
    """All settings of the learning itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_TrainingRecipe",
            display_name="LAMP Training Recipe",
            category="LAMP/training",
            description="The settings of a recipe one by one, such as learning rates and loss, in "
            "place of LAMP Trainer's recipes. The defaults are the paper's.",
            is_experimental=True,
            inputs=[
                setting_input("learning_rate"),
                setting_input("conv_rate"),
                setting_input("attention_rate"),
                setting_input("query_rate"),
                setting_input("reference_width"),
                setting_input("rate_schedule"),
                setting_input("warmup"),
                setting_input("weight_decay"),
                setting_input("ema"),
                setting_input("min_snr"),
                setting_input("groupnorm"),
                setting_input("query_decay", optional=True),
                setting_input("difference_loss", optional=True),
            ],
            outputs=[
                LampRecipe.Output(
                    display_name="recipe", tooltip="For custom_recipe of LAMP Trainer."
                )
            ],
            **aliases("learning rate", "training settings", "hyperparameters"),
        )

    @classmethod
    @named_errors("LAMP Training Recipe")
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(settings)


NODES: list[type[io.ComfyNode]] = [Recipe]
