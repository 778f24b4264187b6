"""Make a motion of other files: merge two."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.checkpoint import MotionFile
from ..lamp.merge import merge_motions
from .common import LampMotion, aliases, named_errors


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
        return io.NodeOutput(merge_motions(first, second, (first_weight, second_weight)))


NODES: list[type[io.ComfyNode]] = [MergeMotions]
