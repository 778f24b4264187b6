"""Videos longer than the clips that a motion was trained on."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.hosts.comfy.extend import extend_video
from ..lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER
from ..lamp.hosts.comfy.windows import with_windows
from ..lamp.method.adain import AdaINSchedule
from ..lamp.method.windows import Windows
from .common import LampAdaIN, aliases, named_errors, seed_input
from .generate import sampling_inputs

_MAX_FRAMES = 128


class AnchoredWindows(io.ComfyNode):
    """Show the model a long video in pieces."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_AnchoredWindows",
            display_name="LAMP Anchored Windows",
            category="LAMP/sampling",
            description="Lets a MODEL with a motion draw a long video in overlapping pieces of the "
            "trained length. Every piece begins with frame 1, so the look holds, and the memory "
            "does not grow with the number of frames.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from Load LAMP Motion or LAMP Trainer."),
                io.Int.Input(
                    "length",
                    default=16,
                    min=2,
                    max=_MAX_FRAMES,
                    tooltip="Frames that the model sees at once, frame 1 included: best the number "
                    "that the motion was trained on (16). Shorter videos are not cut.",
                ),
                io.Int.Input(
                    "overlap",
                    default=4,
                    min=0,
                    max=_MAX_FRAMES - 2,
                    tooltip="Frames that a piece shares with the next, besides frame 1. They are "
                    "blended; more is smoother and slower.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "windowed_model",
                    display_name="model",
                    tooltip="The MODEL with windows, for LAMP KSampler and the stock samplers.",
                ),
            ],
            **aliases("context windows", "long video", "context length"),
        )

    @classmethod
    @named_errors("LAMP Anchored Windows")
    def execute(cls, model: Any, length: int = 16, overlap: int = 4) -> io.NodeOutput:
        return io.NodeOutput(with_windows(model, Windows(length, overlap)))


class ExtendVideo(io.ComfyNode):
    """Go on where a video ends."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ExtendVideo",
            display_name="LAMP Extend Video",
            category="LAMP/sampling",
            description="Goes on from the last frame of a video with the same motion, as often as "
            "you like. The last frame is not doubled, and every piece keeps the colours of the "
            "video's first frame.",
            inputs=[
                io.Model.Input("model", tooltip="A MODEL from Load LAMP Motion or LAMP Trainer."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt, in the words of the motion, as before."
                ),
                io.Conditioning.Input(
                    "negative", tooltip="What to avoid; the paper leaves it empty."
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="The video so far, from LAMP KSampler, or from VAE Encode of all its "
                    "frames.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=_MAX_FRAMES,
                    tooltip="The length of each new piece, its first frame included, which is the "
                    "last one so far: 16 adds 15. Best the number that the motion was trained on.",
                ),
                io.Int.Input(
                    "times",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="How many pieces are added, one after the other.",
                ),
                io.Float.Input(
                    "hold_colors",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How firmly each piece keeps the colours of the video's first frame: "
                    "1 fully, 0 lets them wander with the video.",
                ),
                seed_input("Decides the noise of the first piece; the next ones count on."),
                *sampling_inputs(),
                LampAdaIN.Input(
                    "adain_schedule",
                    optional=True,
                    tooltip="A schedule from LAMP AdaIN Schedule; it takes the place of adain.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "video_latent",
                    display_name="latent",
                    tooltip="The whole video, old frames and new ones, for VAE Decode.",
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
