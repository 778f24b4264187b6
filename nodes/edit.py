"""LAMP DDIM Inversion, for video editing."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.hosts.comfy.inversion import invert_video
from ..lamp.hosts.comfy.noise import NOISE_LEVEL, GivenNoise
from .common import aliases, named_errors, steps_input


class DDIMInversion(io.ComfyNode):
    """Invert a clip to noise."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_DDIMInversion",
            display_name="LAMP DDIM Inversion",
            category="LAMP/editing",
            description="Inverts a clip to noise for editing (DDIM inversion without guidance). "
            "With this noise and an edited first frame, LAMP KSampler generates the same movement "
            "with a new look.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="MODEL with a motion that was trained on this one clip."
                ),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="Empty prompt, as in the paper: CLIP Text Encode without text.",
                ),
                io.Latent.Input(
                    "latent",
                    tooltip="All frames of the clip, from VAE Encode with the SD 1.x VAE. Size and "
                    "number of frames must match the edited video.",
                ),
                steps_input(
                    tooltip="Number of steps from the clip to full noise. The paper uses 50."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="How far to invert the clip towards noise. 1 is full inversion, as in "
                    "the paper. Lower values keep more of the clip's look in frames 2 and later.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "noise_latent",
                    display_name="noise_latent",
                    tooltip="Noise of the clip, for noise of LAMP KSampler.",
                ),
                io.Int.Output(
                    "sampling_steps",
                    display_name="steps",
                    tooltip="For steps of LAMP KSampler.",
                ),
                io.Float.Output(
                    "denoise",
                    display_name="denoise",
                    tooltip="For denoise of LAMP KSampler.",
                ),
                io.Noise.Output(
                    "noise",
                    display_name="noise",
                    tooltip="Noise of the clip, for SamplerCustomAdvanced. Connect steps and "
                    "denoise to LAMP Scheduler then.",
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
        custom = GivenNoise(found.noise, level=found.level)
        return io.NodeOutput(noise, found.steps, found.denoise, custom)


NODES: list[type[io.ComfyNode]] = [DDIMInversion]
