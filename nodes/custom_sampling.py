"""LAMP's noise, AdaIN schedule, sampler and noise levels for SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..lamp.hosts.comfy.noise import SharedNoise
from ..lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, make_sampler, make_sigmas
from ..lamp.method.adain import PAPER, AdaINMode, AdaINSchedule
from .common import LampAdaIN, aliases, fraction_input, named_errors, seed_input, steps_input
from .sampling import SEED, sampler_name_input, schedule_input


class SharedNoiseLatents(io.ComfyNode):
    """Initial noise with a component that all frames share (paper eq. 6)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_SharedNoise",
            display_name="Shared Noise Latents",
            category="LAMP/sampling",
            description="Generates initial noise with a component that all frames share, for LAMP "
            "KSampler or SamplerCustomAdvanced. A MODEL with a motion uses it as is.",
            inputs=[
                io.Latent.Input("latent", tooltip="Latent of the video. Only its shape is used."),
                seed_input(SEED),
                fraction_input(
                    "alpha",
                    0.2,
                    "Share of common noise in each frame. 0 gives independent frames, 1 the same "
                    "noise in all frames. The paper uses 0.2.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "noise_latent",
                    display_name="noise_latent",
                    tooltip="The noise as a latent, for noise of LAMP KSampler.",
                ),
                io.Noise.Output(
                    "noise", display_name="noise", tooltip="The noise for SamplerCustomAdvanced."
                ),
            ],
            **aliases("video noise", "consistent noise"),
        )

    @classmethod
    @named_errors("Shared Noise Latents")
    def execute(cls, latent: dict[str, Any], seed: int, alpha: float = 0.2) -> io.NodeOutput:
        noise = SharedNoise(seed, alpha)
        return io.NodeOutput({"samples": noise.generate_noise(latent)}, noise)


class AdaINScheduleNode(io.ComfyNode):
    """When the frames take the statistics of frame 2, and when those of frame 1."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_AdaINSchedule",
            display_name="LAMP AdaIN Schedule",
            category="LAMP/sampling",
            description="Sets when the frames take the statistics of frame 2 and when those of "
            "frame 1 during sampling. For LAMP KSampler, LAMP Sampler and LAMP Extend Video.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(get_args(AdaINMode)),
                    default="paper",
                    tooltip="paper: schedule of the paper. official: schedule of the published "
                    "code. off: no AdaIN. custom: the values below.",
                ),
                _custom_input(
                    "switch",
                    0.6,
                    "Fraction of the noise schedule after which the frames follow frame 1 instead "
                    "of frame 2.",
                ),
                _custom_input(
                    "first_strength",
                    1.0,
                    "How strongly frames 3 and later follow frame 2 before the switch.",
                ),
                _custom_input(
                    "second_strength",
                    1.0,
                    "How strongly frames 2 and later follow frame 1 after the switch.",
                ),
            ],
            outputs=[
                LampAdaIN.Output(
                    "schedule",
                    display_name="schedule",
                    tooltip="For adain_schedule of LAMP KSampler, LAMP Sampler or LAMP Extend "
                    "Video.",
                ),
            ],
            **aliases("adain", "color consistency"),
        )

    @classmethod
    @named_errors("LAMP AdaIN Schedule")
    def execute(
        cls,
        mode: AdaINMode,
        switch: float = 0.6,
        first_strength: float = 1.0,
        second_strength: float = 1.0,
    ) -> io.NodeOutput:
        return io.NodeOutput(AdaINSchedule(mode, switch, first_strength, second_strength))


def _custom_input(id: str, default: float, tooltip: str) -> Any:
    return fraction_input(id, default, f"{tooltip} Used by custom only.", step=0.01)


class LampSampler(io.ComfyNode):
    """A SAMPLER with AdaIN between its steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_Sampler",
            display_name="LAMP Sampler",
            category="LAMP/sampling",
            description="A SAMPLER that applies AdaIN between its steps, for "
            "SamplerCustomAdvanced with a MODEL that has a motion.",
            inputs=[
                sampler_name_input(),
                schedule_input(
                    "Schedule from LAMP AdaIN Schedule. Without it, the paper's schedule is used."
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    "sampler", display_name="sampler", tooltip="Sampler for SamplerCustomAdvanced."
                ),
            ],
            **aliases("adain sampler", "video sampler"),
        )

    @classmethod
    @named_errors("LAMP Sampler")
    def execute(
        cls, sampler_name: str, adain_schedule: AdaINSchedule | None = None
    ) -> io.NodeOutput:
        return io.NodeOutput(make_sampler(sampler_name, adain_schedule or PAPER))


class LampScheduler(io.ComfyNode):
    """The noise levels of the official DDIM schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_Scheduler",
            display_name="LAMP Scheduler",
            category="LAMP/sampling",
            description="Noise levels of the official DDIM schedule (timesteps 981, 961, ... 1 for "
            "50 steps), for SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="MODEL that will be sampled."),
                steps_input(),
                fraction_input(
                    "denoise",
                    1.0,
                    "1 starts from pure noise. Lower values start at a lower noise level and keep "
                    "part of the frames in the latent, which must have them all.",
                    step=0.01,
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    "sigmas",
                    display_name="sigmas",
                    tooltip="Noise levels for SamplerCustomAdvanced.",
                ),
            ],
            **aliases("ddim scheduler", "sigmas"),
        )

    @classmethod
    @named_errors("LAMP Scheduler")
    def execute(cls, model: Any, steps: int = 50, denoise: float = 1.0) -> io.NodeOutput:
        return io.NodeOutput(make_sigmas(model, OFFICIAL_SCHEDULER, steps, denoise))


NODES: list[type[io.ComfyNode]] = [
    SharedNoiseLatents,
    AdaINScheduleNode,
    LampSampler,
    LampScheduler,
]
