"""Video editing: a clip back to noise."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.hosts.comfy.inversion import invert_video
from ..lamp.hosts.comfy.noise import NOISE_LEVEL, GivenNoise
from .common import aliases, named_errors


class DDIMInversion(io.ComfyNode):
    """Find the noise from which a clip could have come."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_DDIMInversion",
            display_name="LAMP DDIM Inversion",
            category="LAMP/editing",
            description="Brings a clip back to the noise it could have come from, without "
            "guidance. LAMP KSampler makes the edited clip from that noise and an edited frame 1: "
            "the same movement, another look.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL with a motion that was trained on this one clip, from LAMP "
                    "Trainer or Load LAMP Motion.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The empty prompt, as in the paper: a CLIP Text Encode without text.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="All frames of the clip, from VAE Encode with the VAE of the SD 1.x "
                    "checkpoint; in the size and number of frames of the edited video.",
                ),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="How many steps the whole way to noise has; the paper takes 50.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="Editing strength: how much of the way to noise the clip goes. 1 is "
                    "the paper's; less keeps more of the clip's own look in frames 2 and later.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "noise_latent",
                    display_name="noise_latent",
                    tooltip="The clip's noise, for the noise input of LAMP KSampler.",
                ),
                io.Int.Output(
                    "sampling_steps",
                    display_name="steps",
                    tooltip="For the steps of LAMP KSampler: those that lead back.",
                ),
                io.Float.Output(
                    "denoise",
                    display_name="denoise",
                    tooltip="For the denoise of LAMP KSampler: where the way back begins.",
                ),
                io.Noise.Output(
                    "noise",
                    display_name="noise",
                    tooltip="The noise for SamplerCustomAdvanced; steps and denoise then belong "
                    "in LAMP Scheduler.",
                ),
            ],
            **aliases("video editing", "ddim inversion", "edit video", "unsampler"),
        )

    @classmethod
    @named_errors("LAMP DDIM Inversion")
    def execute(
        cls,
        model: Any,
        conditioning: Any,
        latent: dict[str, Any],
        steps: int = 50,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        found = invert_video(model, conditioning, latent, steps=steps, strength=strength)
        noise = {"samples": found.noise, NOISE_LEVEL: found.level}
        return io.NodeOutput(noise, found.steps, found.denoise, GivenNoise(found.noise))


NODES: list[type[io.ComfyNode]] = [DDIMInversion]
