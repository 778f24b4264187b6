"""The toy base and its sprite world: everything the pack does, without a download."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from .common import aliases, named_errors, seed_input

ToyCase = io.Custom("LAMP_TOY_CASE")
_SEED = "The world's seed: which objects the clips show, and so which ones are unseen."
_COUNT = "How many clips, an even number. Keep it at 8: LAMP Toy Object counts on that."


def _motion_input() -> io.Combo.Input:
    from ..lamp.toy.motions import MOTIONS

    # Last and optional, so that graphs from before there was a choice still run.
    return io.Combo.Input(
        "motion",
        options=list(MOTIONS),
        default="moves_right",
        optional=True,
        tooltip="What the objects do. LAMP Toy Clips and LAMP Toy Object must agree.",
    )


class LoadToyBase(io.ComfyNode):
    """The embedded toy model, in the shape of SD 1.x."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_LoadToyBase",
            display_name="Load LAMP Toy Base",
            category="LAMP/toy",
            description="A tiny SD 1.x-shaped model that draws coloured sprites at 32x32 pixels. "
            "It comes with the pack, for trying workflows on any computer, and draws nothing else.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The toy UNet."),
                io.Clip.Output(display_name="clip", tooltip="The toy text encoder."),
                io.Vae.Output(display_name="vae", tooltip="The toy VAE, 2 pixels a latent."),
            ],
            **aliases("demo model", "test model", "try without download"),
        )

    @classmethod
    @named_errors("Load LAMP Toy Base")
    def execute(cls) -> io.NodeOutput:
        from ..lamp.hosts.comfy.toy import load_toy_models
        from ..lamp.toy.base import toy_state

        return io.NodeOutput(*load_toy_models(toy_state()))


class ToyClips(io.ComfyNode):
    """Eight clips of sprites that share a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ToyClips",
            display_name="LAMP Toy Clips",
            category="LAMP/toy",
            description="Training clips of the toy world: different objects that move alike.",
            inputs=[
                seed_input(_SEED, most=2**31 - 1, changes=False),
                io.Int.Input("clips", default=8, min=4, max=14, step=2, tooltip=_COUNT),
                _motion_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="clips",
                    is_output_list=True,
                    tooltip="One IMAGE batch a clip, for the images input of LAMP Training Clips.",
                ),
                io.String.Output(
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="Each clip's caption with the motion, for LAMP Training Clips.",
                ),
            ],
            **aliases("demo clips", "test clips", "sprites"),
        )

    @classmethod
    @named_errors("LAMP Toy Clips")
    def execute(cls, seed: int, clips: int, motion: str = "moves_right") -> io.NodeOutput:
        from ..lamp.toy.cases import training_clips

        made = training_clips(seed, motion, clips)
        prompts = [f"{caption} {made.motion}" for caption in made.captions]
        return io.NodeOutput([_image(frames) for frames in made.frames], prompts)


class ToyObject(io.ComfyNode):
    """An object that the clips do not show."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ToyObject",
            display_name="LAMP Toy Object",
            category="LAMP/toy",
            description="The first frame of an object that no clip shows, and its true motion.",
            inputs=[
                seed_input(_SEED, most=2**31 - 1, changes=False),
                io.Combo.Input(
                    "unseen",
                    options=["combination", "hard"],
                    tooltip="combination: shape and colour occur in the clips, but not together. "
                    "hard: neither occurs.",
                ),
                io.Int.Input("number", default=0, min=0, max=23, tooltip="Which of 24 objects."),
                _motion_input(),
            ],
            outputs=[
                io.Image.Output(display_name="first_frame", tooltip="The object at its start."),
                io.String.Output(display_name="prompt", tooltip="Its caption with the motion."),
                io.Image.Output(display_name="truth", tooltip="The frames as they ought to be."),
                ToyCase.Output(display_name="case", tooltip="The truth, for LAMP Toy Score."),
            ],
            **aliases("demo picture", "test first frame"),
        )

    @classmethod
    @named_errors("LAMP Toy Object")
    def execute(
        cls, seed: int, unseen: str, number: int, motion: str = "moves_right"
    ) -> io.NodeOutput:
        from ..lamp.toy.cases import evaluation_cases

        case = evaluation_cases(seed, unseen, motion)[number]
        truth = _image(case.frames)
        return io.NodeOutput(truth[:1], case.prompt, truth, case)


class ToyScore(io.ComfyNode):
    """How well a generated clip moves as learned."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ToyScore",
            display_name="LAMP Toy Score",
            category="LAMP/toy",
            description="Compares a generated toy clip with what its object ought to do.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The generated frames, frame 1 included."),
                ToyCase.Input("case", tooltip="From LAMP Toy Object."),
            ],
            outputs=[
                io.Float.Output(display_name="iou", tooltip="Overlap with the true place, 0..1."),
                io.String.Output(display_name="score", tooltip="All measures in words."),
            ],
            **aliases("demo score", "did it learn"),
        )

    @classmethod
    @named_errors("LAMP Toy Score")
    def execute(cls, images: torch.Tensor, case: Any) -> io.NodeOutput:
        from ..lamp.toy.motions import MOTIONS
        from ..lamp.toy.score import score_clip

        frames = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        score = score_clip(frames, case)
        error = {"place": "path", "angle": "angle", "size": "size"}[MOTIONS[case.kind].seen_in]
        text = (
            f"{case.prompt}: {'followed' if score.followed else 'not followed'}, IoU "
            f"{score.iou:.2f}, {error} error {score.nrmse:.2f}, ground {score.ground:.1f} dB"
        )
        return io.NodeOutput(score.iou, text, ui=ui.PreviewText(text))


def _image(frames: Any) -> torch.Tensor:
    """`f h w 3` bytes -> IMAGE."""
    return torch.from_numpy(frames).float() / 255


NODES: list[type[io.ComfyNode]] = [LoadToyBase, ToyClips, ToyObject, ToyScore]
