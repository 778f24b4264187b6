"""LAMP Video Metrics."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..lamp.errors import LampError
from ..lamp.hosts.comfy.metrics import image_encoder, text_encoder
from ..lamp.metrics import MEASURES, Metrics, measure
from .common import aliases, named_errors, progress_of


class VideoMetrics(io.ComfyNode):
    """The paper's metrics, and two from optical flow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_VideoMetrics",
            display_name="LAMP Video Metrics",
            category="LAMP/image",
            description="Computes the paper's metrics (text alignment, frame consistency, "
            "diversity), the amount of motion and the stability of the background.",
            is_output_node=True,
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Frames of a video, from VAE Decode. For several videos, connect a "
                    "list with one IMAGE each, or one IMAGE with all frames and set frames.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the video should show, for text alignment. Connect a list of "
                    "texts to give each video its own prompt.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Frames per video, if images holds several videos in a row. 0: every "
                    "IMAGE is one video.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP image encoder from Load CLIP Vision, preferably CLIP-ViT-L-14. "
                    "Needed for the paper's three metrics.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Text encoder of the same CLIP model, with its text projection, for "
                    "text alignment. The CLIP of a checkpoint lacks the projection.",
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
                    tooltip="Similarity of the frames according to CLIP. Higher is better; a still "
                    "video has 100.",
                ),
                io.Float.Output(
                    "diversity",
                    display_name="diversity",
                    tooltip="Similarity of several videos according to CLIP, at most 100. Lower "
                    "means more diverse.",
                ),
                io.Float.Output(
                    "motion",
                    display_name="motion",
                    tooltip="Movement of the fastest tenth of the image, in pixels per frame.",
                ),
                io.Float.Output(
                    "background",
                    display_name="background",
                    tooltip="How well the stillest half of the image stays as in frame 1, in dB. "
                    "80: unchanged. 30: hardly visible change. 20: clearly visible change.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="All metrics of every video as text, and what the missing ones need.",
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
            progress_of(cls).update,
        )
        report = metrics.report()
        return io.NodeOutput(*_numbers(metrics), report, ui=ui.PreviewText(report))


def split_videos(images: list[torch.Tensor], frames: int) -> list[torch.Tensor]:
    """One video per IMAGE, or one per `frames` of its images.

    Raises:
        LampError: the number of images is no multiple of `frames`.
    """
    if not frames:
        return images
    for batch in images:
        if len(batch) % frames:
            raise LampError(
                f"images has {len(batch)} images, which is not a multiple of frames ({frames}). "
                "Set frames to the number of frames per video, or to 0 if every IMAGE is one video."
            )
    return [video for batch in images for video in batch.split(frames)]


def _numbers(metrics: Metrics) -> list[Any]:
    """The means over the videos. A metric that could not be computed blocks the nodes connected to
    it, with the reason, rather than passing on a meaningless number."""
    from comfy_execution.graph_utils import ExecutionBlocker

    values = {name: metrics.mean(name) for name in MEASURES}
    values["diversity"] = metrics.diversity
    order = ("text_alignment", "frame_consistency", "diversity", "motion", "background")
    return [
        ExecutionBlocker(metrics.missing[name]) if values[name] is None else values[name]
        for name in order
    ]


NODES: list[type[io.ComfyNode]] = [VideoMetrics]
