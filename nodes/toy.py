"""The toy models and their two worlds, to try the pack without a download."""

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


# Inputs that came later are last and optional, so that older workflows still run.


def _motion_input() -> io.Combo.Input:
    from ..lamp.toy.worlds import motion_names

    return io.Combo.Input(
        "motion",
        options=motion_names(),
        default="moves_right",
        optional=True,
        tooltip="Motion of the clips. Use the same in LAMP Toy Clips and LAMP Toy Object. Those "
        "from helicopter on belong to the world scenes, the others to sprites.",
    )


def _world_input() -> io.Combo.Input:
    from ..lamp.toy.worlds import BASES

    return io.Combo.Input(
        "world",
        options=list(BASES),
        default="sprites",
        optional=True,
        tooltip="sprites: coloured shapes of 32x32 pixels. scenes: landscapes of 64x64 pixels with "
        "the eight motions of the paper.",
    )


class LoadToyBase(io.ComfyNode):
    """The bundled toy model with the SD 1.x architecture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_LoadToyBase",
            display_name="Load LAMP Toy Base",
            category="LAMP/toy",
            description="Loads a tiny model with the SD 1.x architecture that generates pictures "
            "of 32x32 or 64x64 pixels. It comes with the pack, to try workflows without a "
            "download.",
            inputs=[_world_input()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="Toy UNet."),
                io.Clip.Output(display_name="clip", tooltip="Toy text encoder."),
                io.Vae.Output(
                    display_name="vae",
                    tooltip="Toy VAE, 2 pixels per latent for sprites, 4 for scenes.",
                ),
            ],
            **aliases("demo model", "test model", "try without download"),
            **out_of_search(),
        )

    @classmethod
    @named_errors("Load LAMP Toy Base")
    def execute(cls, world: str = "sprites") -> io.NodeOutput:
        from ..lamp.hosts.comfy.toy import load_toy_models
        from ..lamp.toy.base import toy_state
        from ..lamp.toy.worlds import BASES

        return io.NodeOutput(*load_toy_models(toy_state(BASES[world])))


class LoadToyClip(io.ComfyNode):
    """The bundled CLIP that knows the toy world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_LoadToyClip",
            display_name="Load LAMP Toy CLIP",
            category="LAMP/toy",
            description="Loads a tiny CLIP, trained on pictures and captions of a toy world, for "
            "LAMP Video Metrics. It knows no other pictures and words.",
            inputs=[_world_input()],
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
    def execute(cls, world: str = "sprites") -> io.NodeOutput:
        from ..lamp.hosts.comfy.toy import load_toy_clip_models
        from ..lamp.toy.clip import clip_state
        from ..lamp.toy.worlds import CLIPS

        return io.NodeOutput(*load_toy_clip_models(*clip_state(CLIPS[world])))


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
        from ..lamp.toy.worlds import training_clips

        made = training_clips(seed, motion, clips)
        prompts = [f"{caption} {made.motion}" for caption in made.captions]
        return io.NodeOutput([_image(frames) for frames in made.frames], prompts)


class ToyObject(io.ComfyNode):
    """An object that no clip shows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..lamp.toy.worlds import SETS

        return io.Schema(
            node_id="LAMP_ToyObject",
            display_name="LAMP Toy Object",
            category="LAMP/toy",
            description="First frame of an object that no toy clip shows, and its true motion.",
            inputs=[
                seed_input(_SEED, most=2**31 - 1, changes=False),
                io.Combo.Input(
                    "unseen",
                    options=list(SETS),
                    tooltip="combination: shape and colour occur in the clips, but not together. "
                    "hard: neither occurs. Scenes have only combination: neither colour nor place "
                    "occurs.",
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
        from ..lamp.toy.worlds import evaluation_cases

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
        from ..lamp.toy.worlds import score_text

        frames = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        overlap, text = score_text(frames, case)
        return io.NodeOutput(overlap, text, ui=ui.PreviewText(text))


def _image(frames: Any) -> torch.Tensor:
    """`f h w 3` bytes -> IMAGE."""
    return torch.from_numpy(frames).float() / 255


NODES: list[type[io.ComfyNode]] = [LoadToyBase, LoadToyClip, ToyClips, ToyObject, ToyScore]
