"""LAMP KSampler, and the inputs that it shares with other samplers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lamp.hosts.comfy.noise import NOISE_LEVEL
from ..lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, sample_video, scheduler_names
from ..lamp.method.adain import AdaINSchedule
from .common import (
    LampAdaIN,
    aliases,
    fraction_input,
    model_input,
    named_errors,
    prompt_inputs,
    seed_input,
    steps_input,
)

SEED = "Random seed of the noise. The same seed and settings give the same video."


def sampler_name_input() -> Any:
    import comfy.samplers

    return io.Combo.Input(
        "sampler_name",
        options=list(comfy.samplers.SAMPLER_NAMES),
        default="ddim",
        tooltip="Sampling algorithm. The paper uses ddim.",
    )


def schedule_input(tooltip: str = "Schedule from LAMP AdaIN Schedule. Overrides adain.") -> Any:
    return LampAdaIN.Input("adain_schedule", optional=True, tooltip=tooltip)


def sampling_inputs() -> list[Any]:
    """Steps, guidance, sampler, noise levels and AdaIN."""
    return [
        steps_input(),
        io.Float.Input(
            "cfg",
            default=12.5,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance scale. The official scripts use 12.5; few-step LoRAs "
            "need 1 to 2.",
        ),
        sampler_name_input(),
        io.Combo.Input(
            "scheduler",
            options=scheduler_names(),
            default=OFFICIAL_SCHEDULER,
            tooltip="Noise levels of the steps. ddim (official) has the timesteps of the published "
            "code.",
        ),
        io.Combo.Input(
            "adain",
            options=["paper", "official", "off"],
            default="paper",
            tooltip="Aligns the statistics of the frames between steps, which keeps colours "
            "stable. paper: as in the paper. official: as in the published code. off: none.",
        ),
    ]


class LampKSampler(io.ComfyNode):
    """Sample a video by supplement alg. 1."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_KSampler",
            display_name="LAMP KSampler",
            category="LAMP/sampling",
            description="Samples a video from its first frame as in the paper: shared noise, DDIM, "
            "and AdaIN between the steps to keep colours stable.",
            inputs=[
                model_input(),
                *prompt_inputs(),
                io.Latent.Input("latent", tooltip="Latent from LAMP First-Frame Condition."),
                seed_input(SEED),
                *sampling_inputs(),
                fraction_input(
                    "denoise",
                    1.0,
                    "1 generates all frames but the first from noise. Lower values keep part of "
                    "the frames: those in latent, which must have them all, or those in inverted "
                    "noise.",
                    step=0.01,
                ),
                schedule_input(),
                io.Latent.Input(
                    "noise",
                    optional=True,
                    tooltip="Initial noise, used as is, from Shared Noise Latents or LAMP DDIM "
                    "Inversion. Replaces the noise of seed.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "video_latent",
                    display_name="latent",
                    tooltip="The sampled video. Frame 1 is bit-identical to the input.",
                ),
            ],
            **aliases("video sampler", "image to video", "animate", "img2vid", "adain sampler"),
        )

    @classmethod
    @named_errors("LAMP KSampler")
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int = 50,
        cfg: float = 12.5,
        sampler_name: str = "ddim",
        scheduler: str = OFFICIAL_SCHEDULER,
        adain: Any = "paper",
        denoise: float = 1.0,
        adain_schedule: AdaINSchedule | None = None,
        noise: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        video = sample_video(
            model,
            positive,
            negative,
            latent,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler_name,
            scheduler=scheduler,
            schedule=adain_schedule or AdaINSchedule(adain),
            denoise=denoise,
            noise=None if noise is None else noise["samples"],
            noise_level=None if noise is None else noise.get(NOISE_LEVEL),
        )
        return io.NodeOutput(video)


NODES: list[type[io.ComfyNode]] = [LampKSampler]
