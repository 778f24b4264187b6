"""LAMP Anchored Windows and LAMP Extend Video: videos longer than the training clips."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.hosts.comfy.extend import extend_video
from ..lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER
from ..lamp.hosts.comfy.windows import with_windows
from ..lamp.method.adain import AdaINSchedule
from ..lamp.method.windows import Windows
from .common import (
    aliases,
    fraction_input,
    model_input,
    named_errors,
    prompt_inputs,
    seed_input,
)
from .sampling import sampling_inputs, schedule_input

_MAX_FRAMES = 128


class AnchoredWindows(io.ComfyNode):
    """Sample a long video in windows that all include frame 1."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_AnchoredWindows",
            display_name="LAMP Anchored Windows",
            category="LAMP/sampling",
            description="Samples long videos in overlapping windows of the trained length. Every "
            "window includes frame 1, which keeps the look consistent. Memory use stays that of "
            "one window.",
            inputs=[
                model_input(),
                io.Int.Input(
                    "length",
                    default=16,
                    min=2,
                    max=_MAX_FRAMES,
                    tooltip="Frames per window, including frame 1. Use the number that the motion "
                    "was trained on, usually 16. Shorter videos are not split.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=0,
                    max=_MAX_FRAMES - 2,
                    tooltip="Frames that neighbouring windows share, besides frame 1. They are "
                    "blended: more is smoother and slower.",
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    optional=True,
                    tooltip="Lets the last frame lead back to frame 1, so that the video repeats "
                    "without a jump. For motions that come back to their start, such as swinging. "
                    "One more window runs across the end, so short videos take twice as long.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "windowed_model",
                    display_name="model",
                    tooltip="MODEL with windows, for LAMP KSampler and the stock samplers.",
                ),
            ],
            **aliases("context windows", "long video", "context length"),
        )

    @classmethod
    @named_errors("LAMP Anchored Windows")
    def execute(
        cls, model: Any, length: int = 16, overlap: int = 4, loop: bool = False
    ) -> io.NodeOutput:
        return io.NodeOutput(with_windows(model, Windows(length, overlap, loop)))


class ExtendVideo(io.ComfyNode):
    """Continue a video from its last frame."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ExtendVideo",
            display_name="LAMP Extend Video",
            category="LAMP/sampling",
            description="Continues a video from its last frame with the same motion, one or more "
            "times. Each new segment keeps the colours of the video's first frame.",
            inputs=[
                model_input(),
                *prompt_inputs(),
                io.Latent.Input(
                    "latent",
                    tooltip="The video so far, from LAMP KSampler, or all its frames from VAE "
                    "Encode.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=_MAX_FRAMES,
                    tooltip="Length of each new segment, including the frame it shares with the "
                    "video: 16 adds 15 frames. Use the number that the motion was trained on.",
                ),
                io.Int.Input(
                    "times",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of segments to add, one after the other.",
                ),
                fraction_input(
                    "hold_colors",
                    1.0,
                    "How strongly each segment keeps the colours of the video's first frame: 1 "
                    "fully, 0 lets them drift.",
                ),
                seed_input("Random seed of the first segment. Each further segment adds 1."),
                *sampling_inputs(),
                schedule_input(),
            ],
            outputs=[
                io.Latent.Output(
                    "video_latent",
                    display_name="latent",
                    tooltip="The whole video with old and new frames, for VAE Decode.",
                ),
            ],
            **aliases("continue video", "long video", "loop back last frame"),
        )

    @classmethod
    @named_errors("LAMP Extend Video")
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        frames: int,
        times: int,
        hold_colors: float,
        seed: int,
        steps: int = 50,
        cfg: float = 12.5,
        sampler_name: str = "ddim",
        scheduler: str = OFFICIAL_SCHEDULER,
        adain: Any = "paper",
        adain_schedule: AdaINSchedule | None = None,
    ) -> io.NodeOutput:
        video = extend_video(
            model,
            positive,
            negative,
            latent,
            seed=seed,
            frames=frames,
            times=times,
            hold=hold_colors,
            steps=steps,
            cfg=cfg,
            sampler=sampler_name,
            scheduler=scheduler,
            schedule=adain_schedule or AdaINSchedule(adain),
        )
        return io.NodeOutput(video)


NODES: list[type[io.ComfyNode]] = [AnchoredWindows, ExtendVideo]
