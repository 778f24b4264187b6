"""LAMP Training Recipe."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.method.motion import GROUPNORM_MODES
from ..lamp.training.recipe import QUERY_DECAYS, RATE_SCHEDULES
from .common import aliases, named_errors

LampRecipe = io.Custom("LAMP_RECIPE")


class Recipe(io.ComfyNode):
    """How the motion is learned, setting by setting."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_TrainingRecipe",
            display_name="LAMP Training Recipe",
            category="LAMP/training",
            description="Every setting of the learning itself, in place of LAMP Trainer's recipe. "
            "As it stands here it is the paper's.",
            is_experimental=True,
            inputs=[
                io.Float.Input(
                    "learning_rate",
                    default=3e-5,
                    min=1e-8,
                    max=1.0,
                    step=1e-8,
                    tooltip="The paper's is 0.00003.",
                ),
                _factor("conv_rate", "the motion convolutions and their gates"),
                _factor("attention_rate", "temporal attention"),
                _factor("query_rate", "the tuned queries; 0 leaves them alone"),
                io.Int.Input(
                    "reference_width",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="The number of channels that the learning rate is meant for: wider "
                    "layers learn more slowly, as 1/width. 0 gives all layers one rate (paper).",
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
                    "weight_decay",
                    default=1e-2,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="AdamW's pull towards zero; the paper's is 0.01.",
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
                io.Float.Input(
                    "min_snr",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Cap the weight of nearly clean timesteps at this signal-to-noise "
                    "ratio; 5 is usual, 0 is off (paper).",
                ),
                io.Combo.Input(
                    "groupnorm",
                    options=list(GROUPNORM_MODES),
                    tooltip="Statistics over all frames of a video (pooled, as the official code) "
                    "or frame by frame. The motion file remembers it.",
                ),
                io.Combo.Input(
                    "query_decay",
                    options=list(QUERY_DECAYS),
                    optional=True,
                    tooltip="What weight_decay pulls towards zero in the tuned queries: whole "
                    "queries, the image model's share included (paper), or only what the motion "
                    "changes in them, which carries over to other checkpoints unchanged.",
                ),
            ],
            outputs=[
                LampRecipe.Output(
                    display_name="recipe", tooltip="For LAMP Trainer's custom_recipe."
                )
            ],
            **aliases("learning rate", "training settings", "hyperparameters"),
        )

    @classmethod
    @named_errors("LAMP Training Recipe")
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(settings)


def _factor(name: str, of_what: str) -> Any:
    return io.Float.Input(
        name,
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.01,
        tooltip=f"Factor on the learning rate of {of_what}.",
    )


NODES: list[type[io.ComfyNode]] = [Recipe]
