"""LAMP Motion Map."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..lamp.clips.images import LATENT_STRIDE
from ..lamp.hosts.comfy.motion_map import motion_activity
from ..lamp.method.masks import resize_masks
from ..lamp.method.motion_map import heat_map, mask_from_activity
from .common import (
    advanced,
    aliases,
    model_input,
    named_errors,
    prompt_inputs,
    seed_input,
    steps_input,
)


class MotionMap(io.ComfyNode):
    """Show where a motion acts, and make a mask from it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_MotionMap",
            display_name="LAMP Motion Map",
            category="LAMP/motion",
            description="Shows where a motion acts in the image, as a heat map, and makes a mask "
            "from it. A second Load LAMP Motion with that mask keeps the rest of the image still.",
            inputs=[
                model_input(),
                *prompt_inputs(),
                io.Latent.Input("latent", tooltip="Latent from LAMP First-Frame Condition."),
                seed_input("Random seed of the noise. Use the same seed as for sampling."),
                steps_input(
                    default=4,
                    most=50,
                    tooltip="Steps of the rough video in which the motion is observed. 4 are "
                    "enough; fewer show less of the path.",
                ),
                io.Float.Input(
                    "cfg",
                    default=12.5,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance scale, as in the sampler.",
                ),
                io.Float.Input(
                    "sensitivity",
                    default=1.0,
                    min=0.2,
                    max=3.0,
                    step=0.05,
                    tooltip="Above 1 the mask includes weaker activity, below 1 only the "
                    "strongest.",
                ),
                io.Float.Input(
                    "margin",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the mask extends beyond the activity, as a fraction of the "
                    "image's shorter side.",
                    **advanced(io.Float.Input),
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "motion_mask",
                    display_name="mask",
                    tooltip="White where the motion acts, for mask of Load LAMP Motion.",
                ),
                io.Image.Output(
                    "heat_map",
                    display_name="heat_map",
                    tooltip="Activity of the motion: dark is none, bright is the most.",
                ),
            ],
            is_output_node=True,
            **aliases("motion heatmap", "gate activity", "automatic mask", "where it moves"),
        )

    @classmethod
    @named_errors("LAMP Motion Map")
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int = 4,
        cfg: float = 12.5,
        sensitivity: float = 1.0,
        margin: float = 0.1,
    ) -> io.NodeOutput:
        activity = motion_activity(
            model, positive, negative, latent, seed=seed, steps=steps, cfg=cfg
        )
        size = (activity.shape[0] * LATENT_STRIDE, activity.shape[1] * LATENT_STRIDE)
        activity = resize_masks(activity[None, None], size)[0, 0]
        picture = heat_map(activity)[None]
        mask = mask_from_activity(activity, sensitivity, margin)[None]
        return io.NodeOutput(mask, picture, ui=ui.PreviewImage(picture, cls=cls))


NODES: list[type[io.ComfyNode]] = [MotionMap]
