"""Show where a motion is at work, and make a mask of it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..lamp.clips.images import LATENT_STRIDE
from ..lamp.hosts.comfy.motion_map import motion_activity
from ..lamp.method.masks import resize_masks
from ..lamp.method.motion_map import heat_map, mask_from_activity
from .common import advanced, aliases, named_errors, seed_input


class MotionMap(io.ComfyNode):
    """Where a motion is at work."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_MotionMap",
            display_name="LAMP Motion Map",
            category="LAMP/motion",
            description="Shows where a motion is at work in this picture, as a heat-map, and makes "
            "a mask of it. A second Load LAMP Motion with that mask keeps the rest still.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from Load LAMP Motion or LAMP Trainer."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt, in the words of the motion."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What to avoid; the paper leaves it empty."
                ),
                io.Latent.Input("latent", tooltip="The latent from LAMP First-Frame Condition."),
                seed_input("Decides the noise; take the seed with which you will sample."),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=50,
                    tooltip="Steps of the rough video in which the motion is watched: 4 are "
                    "enough, fewer see less of the way.",
                ),
                io.Float.Input(
                    "cfg",
                    default=12.5,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strictly the prompt is followed, as in the sampler.",
                ),
                io.Float.Input(
                    "sensitivity",
                    default=1.0,
                    min=0.2,
                    max=3.0,
                    step=0.05,
                    tooltip="Above 1 the mask takes in fainter activity, below 1 only the "
                    "strongest.",
                ),
                io.Float.Input(
                    "margin",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the mask reaches beyond the activity, as a share of the "
                    "picture's shorter side.",
                    **advanced(io.Float.Input),
                ),
            ],
            outputs=[
                io.Mask.Output(
                    "motion_mask",
                    display_name="mask",
                    tooltip="White where the motion is at work: for the mask of Load LAMP Motion.",
                ),
                io.Image.Output(
                    "heat_map",
                    display_name="heat_map",
                    tooltip="The activity itself: dark where nothing changes, bright where most.",
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
