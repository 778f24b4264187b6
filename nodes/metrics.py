"""LAMP Video Metrics."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..lamp.errors import LampError
from ..lamp.hosts.comfy.metrics import image_encoder, text_encoder
from ..lamp.metrics import MEASURES, Metrics, measure
from .common import aliases, named_errors
from .progress import NodeProgress


class VideoMetrics(io.ComfyNode):
    """The paper's measures of videos, and two by optical flow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_VideoMetrics",
            display_name="LAMP Video Metrics",
            category="LAMP/image",
            description="Measures videos as the paper does (text alignment, frame consistency, "
            "diversity), and by optical flow how much they move and how still their ground stays.",
            is_output_node=True,
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The frames of a video, from VAE Decode. Of several videos a list, one "
                    "IMAGE each, or one IMAGE with all their frames; then set frames.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the video ought to show, for text alignment. A connected list of "
                    "texts gives each video its own.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="How many frames a video has, if images holds several videos one after "
                    "the other. 0: every IMAGE is one video.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP's image encoder, from Load CLIP Vision, for the paper's three "
                    "measures. Best CLIP-ViT-L-14.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the same CLIP model with its text projection, "
                    "for text alignment. The CLIP of a checkpoint lacks the projection.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "text_alignment",
                    display_name="text_alignment",
                    tooltip="Mean CLIP score of frames and prompt, times 100. Higher is better.",
                ),
                io.Float.Output(
                    "frame_consistency",
                    display_name="frame_consistency",
                    tooltip="How alike the frames are to CLIP, 100 at the most, as in a still "
                    "video. Higher is better.",
                ),
                io.Float.Output(
                    "diversity",
                    display_name="diversity",
                    tooltip="How alike several videos are to CLIP, 100 at the most. Lower is more "
                    "diverse.",
                ),
                io.Float.Output(
                    "motion",
                    display_name="motion",
                    tooltip="Pixels by which the fastest tenth of the picture moves from frame to "
                    "frame.",
                ),
                io.Float.Output(
                    "background",
                    display_name="background",
                    tooltip="How well the stillest half of the picture stays as in frame 1, in dB: "
                    "80 is unchanged, 30 hardly seen, 20 plainly seen.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="All measures of every video in words, and what others would need.",
                ),
            ],
            **aliases("clip score", "evaluate video", "optical flow", "video quality"),
        )

    @classmethod
    @named_errors("LAMP Video Metrics")
    def execute(
        cls,
        images: list[torch.Tensor],
        prompt: list[str],
        frames: list[int],
        clip_vision: list[Any] | None = None,
        clip: list[Any] | None = None,
    ) -> io.NodeOutput:
        videos = split_videos(images, frames[0])
        vision, text = (clip_vision or [None])[0], (clip or [None])[0]
        metrics = measure(
            videos,
            [f"video {number + 1}" for number in range(len(videos))],
            prompt,
            None if vision is None else image_encoder(vision),
            None if vision is None or text is None else text_encoder(text, vision),
            NodeProgress(getattr(cls.hidden, "unique_id", None)).update,
        )
        report = metrics.report()
        return io.NodeOutput(*_numbers(metrics), report, ui=ui.PreviewText(report))


def split_videos(images: list[torch.Tensor], frames: int) -> list[torch.Tensor]:
    """One video for each IMAGE, or one for every so many of its frames.

    Raises:
        LampError: the frames do not come out even.
    """
    if not frames:
        return images
    for batch in images:
        if len(batch) % frames:
            raise LampError(
                f"{len(batch)} images are no whole number of videos of {frames} frames: set frames "
                "to the number that each video has, or to 0 if every IMAGE is one video."
            )
    return [video for batch in images for video in batch.split(frames)]


def _numbers(metrics: Metrics) -> list[Any]:
    """The means over the videos; what could not be measured stops a node that wants it, and says
    why, in place of a number that means nothing."""
    from comfy_execution.graph_utils import ExecutionBlocker

    values = {name: metrics.mean(name) for name in MEASURES}
    values["diversity"] = metrics.diversity
    order = ("text_alignment", "frame_consistency", "diversity", "motion", "background")
    return [
        ExecutionBlocker(metrics.missing[name]) if values[name] is None else values[name]
        for name in order
    ]


NODES: list[type[io.ComfyNode]] = [VideoMetrics]
