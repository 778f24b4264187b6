"""The toy model and its world of sprites, to try the pack without a download."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from .common import aliases, named_errors, out_of_search, seed_input

ToyCase = io.Custom("LAMP_TOY_CASE")
_SEED = (
    "Random seed of the toy world. It decides which objects the clips show and which ones they do "
    "not."
)
_COUNT = "Number of clips, must be even. Keep 8: LAMP Toy Object assumes it."


def _motion_input() -> io.Combo.Input:
    from ..lamp.toy.motions import MOTIONS

    # Last and optional, so that workflows from before this input existed still run.
    return io.Combo.Input(
        "motion",
        options=list(MOTIONS),
        default="moves_right",
        optional=True,
        tooltip="Motion of the objects. Use the same in LAMP Toy Clips and LAMP Toy Object.",
    )


class LoadToyBase(io.ComfyNode):
    """The bundled toy model with the SD 1.x architecture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_LoadToyBase",
            display_name="Load LAMP Toy Base",
            category="LAMP/toy",
            description="Loads a tiny model with the SD 1.x architecture that generates coloured "
            "sprites of 32x32 pixels. It comes with the pack, to try workflows without a download.",
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Toy UNet."),
                io.Clip.Output(display_name="clip", tooltip="Toy text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Toy VAE, 2 pixels per latent."),
            ],
            **aliases("demo model", "test model", "try without download"),
            **out_of_search(),
        )

    @classmethod
    @named_errors("Load LAMP Toy Base")
    def execute(cls) -> io.NodeOutput:
        from ..lamp.hosts.comfy.toy import load_toy_models
        from ..lamp.toy.base import toy_state

        return io.NodeOutput(*load_toy_models(toy_state()))


class LoadToyClip(io.ComfyNode):
    """The bundled CLIP that knows the toy world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_LoadToyClip",
            display_name="Load LAMP Toy CLIP",
            category="LAMP/toy",
            description="Loads a tiny CLIP, trained on pictures and captions of the toy world, for "
            "LAMP Video Metrics. It knows no other pictures and words.",
            inputs=[],
            outputs=[
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="Image encoder, for LAMP Video Metrics."
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Its text encoder, for LAMP Video Metrics. To generate, use the CLIP "
                    "of Load LAMP Toy Base.",
                ),
            ],
            **aliases("demo clip", "test clip vision", "evaluate without download"),
            **out_of_search(),
        )

    @classmethod
    @named_errors("Load LAMP Toy CLIP")
    def execute(cls) -> io.NodeOutput:
        from ..lamp.hosts.comfy.toy import load_toy_clip_models
        from ..lamp.toy.clip import clip_state

        return io.NodeOutput(*load_toy_clip_models(*clip_state()))


class ToyClips(io.ComfyNode):
    """Clips of sprites with the same motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ToyClips",
            display_name="LAMP Toy Clips",
            category="LAMP/toy",
            description="Training clips of the toy world: different objects with the same motion.",
            inputs=[
                seed_input(_SEED, most=2**31 - 1, changes=False),
                io.Int.Input("clips", default=8, min=4, max=14, step=2, tooltip=_COUNT),
                _motion_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="clips",
                    is_output_list=True,
                    tooltip="One IMAGE batch per clip, for images of LAMP Training Clips.",
                ),
                io.String.Output(
                    display_name="prompts",
                    is_output_list=True,
                    tooltip="Caption of each clip with its motion, for prompt of LAMP "
                    "Training Clips.",
                ),
            ],
            **aliases("demo clips", "test clips", "sprites"),
            **out_of_search(),
        )

    @classmethod
    @named_errors("LAMP Toy Clips")
    def execute(cls, seed: int, clips: int, motion: str = "moves_right") -> io.NodeOutput:
        from ..lamp.toy.cases import training_clips

        made = training_clips(seed, motion, clips)
        prompts = [f"{caption} {made.motion}" for caption in made.captions]
        return io.NodeOutput([_image(frames) for frames in made.frames], prompts)


class ToyObject(io.ComfyNode):
    """An object that no clip shows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ToyObject",
            display_name="LAMP Toy Object",
            category="LAMP/toy",
            description="First frame of an object that no toy clip shows, and its true motion.",
            inputs=[
                seed_input(_SEED, most=2**31 - 1, changes=False),
                io.Combo.Input(
                    "unseen",
                    options=["combination", "hard"],
                    tooltip="combination: shape and colour occur in the clips, but not together. "
                    "hard: neither occurs.",
                ),
                io.Int.Input(
                    "number", default=0, min=0, max=23, tooltip="Which of the 24 objects."
                ),
                _motion_input(),
            ],
            outputs=[
                io.Image.Output(display_name="first_frame", tooltip="First frame of the object."),
                io.String.Output(display_name="prompt", tooltip="Its caption with the motion."),
                io.Image.Output(display_name="truth", tooltip="True frames of the video."),
                ToyCase.Output(display_name="case", tooltip="True motion, for LAMP Toy Score."),
            ],
            **aliases("demo picture", "test first frame"),
            **out_of_search(),
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
    """How well a generated video follows the motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_ToyScore",
            display_name="LAMP Toy Score",
            category="LAMP/toy",
            description="Compares a generated toy video with the true motion of its object.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Generated frames, including frame 1."),
                ToyCase.Input("case", tooltip="Case from LAMP Toy Object."),
            ],
            outputs=[
                io.Float.Output(
                    display_name="iou", tooltip="Overlap with the true position, 0 to 1."
                ),
                io.String.Output(display_name="score", tooltip="All metrics as text."),
            ],
            **aliases("demo score", "did it learn"),
            **out_of_search(),
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
            f"{score.iou:.2f}, {error} error {score.nrmse:.2f}, background {score.ground:.1f} dB"
        )
        return io.NodeOutput(score.iou, text, ui=ui.PreviewText(text))


def _image(frames: Any) -> torch.Tensor:
    """`f h w 3` bytes -> IMAGE."""
    return torch.from_numpy(frames).float() / 255


NODES: list[type[io.ComfyNode]] = [LoadToyBase, LoadToyClip, ToyClips, ToyObject, ToyScore]
