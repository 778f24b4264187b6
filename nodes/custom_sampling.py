"""LAMP's parts for the host's own custom sampling graph (SamplerCustomAdvanced)."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..lamp.hosts.comfy.sampler import OFFICIAL_SCHEDULER, make_sampler, make_sigmas
from ..lamp.method.adain import PAPER, AdaINMode, AdaINSchedule
from .common import LampAdaIN, aliases, named_errors


def _share(id: str, default: float, tooltip: str) -> Any:
    return io.Float.Input(id, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class AdaINScheduleNode(io.ComfyNode):
    """When which frame's statistics are taken."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_AdaINSchedule",
            display_name="LAMP AdaIN Schedule",
            category="LAMP/sampling",
            description="Sets when, during sampling, the frames take the statistics of frame 2 "
            "and when those of frame 1, for LAMP KSampler and LAMP Sampler.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(get_args(AdaINMode)),
                    default="paper",
                    tooltip="The paper's schedule, the official code's, none, or a custom one, to "
                    "which alone the values below apply.",
                ),
                _share(
                    "switch",
                    0.6,
                    "The share of the noise schedule after which the frames follow frame 1 "
                    "instead of frame 2 (custom only).",
                ),
                _share(
                    "first_strength",
                    1.0,
                    "How far frames 3 and later follow frame 2 in the first phase (custom only).",
                ),
                _share(
                    "second_strength",
                    1.0,
                    "How far frames 2 and later follow frame 1 in the second phase (custom only).",
                ),
            ],
            outputs=[
                LampAdaIN.Output(
                    "schedule",
                    display_name="schedule",
                    tooltip="The schedule for LAMP KSampler or LAMP Sampler.",
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


class LampSampler(io.ComfyNode):
    """A SAMPLER with AdaIN between its steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        import comfy.samplers

        return io.Schema(
            node_id="LAMP_Sampler",
            display_name="LAMP Sampler",
            category="LAMP/sampling",
            description="A SAMPLER that aligns the frames between its steps, for "
            "SamplerCustomAdvanced with a MODEL that has a LAMP motion.",
            inputs=[
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="ddim",
                    tooltip="The sampling algorithm; ddim is the paper's.",
                ),
                LampAdaIN.Input(
                    "adain_schedule",
                    optional=True,
                    tooltip="A schedule from LAMP AdaIN Schedule; without it, the paper's.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    "sampler", display_name="sampler", tooltip="For SamplerCustomAdvanced."
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
    """The official noise levels."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_Scheduler",
            display_name="LAMP Scheduler",
            category="LAMP/sampling",
            description="The noise levels of the official DDIM schedule (timesteps 981, 961, ... "
            "1 for 50 steps), for SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that will be sampled."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=1000,
                    tooltip="The number of denoising steps; the paper takes 50.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much is drawn anew: 1 everything but frame 1; less starts at a "
                    "lower noise level.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    "sigmas", display_name="sigmas", tooltip="For SamplerCustomAdvanced."
                ),
            ],
            **aliases("ddim scheduler", "sigmas"),
        )

    @classmethod
    @named_errors("LAMP Scheduler")
    def execute(cls, model: Any, steps: int = 50, denoise: float = 1.0) -> io.NodeOutput:
        return io.NodeOutput(make_sigmas(model, OFFICIAL_SCHEDULER, steps, denoise))


NODES: list[type[io.ComfyNode]] = [AdaINScheduleNode, LampSampler, LampScheduler]
