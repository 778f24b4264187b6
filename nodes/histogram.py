"""Histogram Match."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..lamp.method.histogram import match_histograms
from .common import aliases, fraction_input, named_errors

# Frames on the device at a time: enough to keep it busy, few enough to fit beside a model.
_CHUNK = 16


class HistogramMatch(io.ComfyNode):
    """Give all frames the colours of one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_HistogramMatch",
            display_name="Histogram Match",
            category="LAMP/image",
            description="Matches the colour histogram of every frame to the first frame or to a "
            "reference image. Removes colour drift and flicker.",
            inputs=[
                io.Image.Input("images", tooltip="Frames of the decoded video."),
                fraction_input(
                    "strength",
                    1.0,
                    "How far to move the colours: 0 leaves them unchanged, 1 matches the "
                    "histogram fully.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Image with the target colours, of any size. Without it, frame 1 of "
                    "images is used. Of a batch, only the first image is used.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "matched", display_name="images", tooltip="Frames with matched colours."
                ),
            ],
            **aliases("color match", "colour match", "deflicker"),
        )

    @classmethod
    @named_errors("Histogram Match")
    def execute(
        cls,
        images: torch.Tensor,
        strength: float = 1.0,
        reference: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        import comfy.model_management as management

        device = management.get_torch_device()
        target = (images if reference is None else reference)[0].to(device)
        matched = []
        for chunk in images.split(_CHUNK):
            management.throw_exception_if_processing_interrupted()
            matched.append(match_histograms(chunk.to(device), target, strength).cpu())
        return io.NodeOutput(torch.cat(matched))


NODES: list[type[io.ComfyNode]] = [HistogramMatch]
