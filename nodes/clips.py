"""LAMP Training Clips."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..lamp.clips import clips_from_images, load_clips
from ..lamp.errors import ClipError
from .common import named_errors
from .progress import NodeProgress

logger = logging.getLogger("lamp")
LampClips = io.Custom("LAMP_CLIPS")
NO_FOLDER = "(from images)"
_DEEPEST = 3


def clip_folders() -> dict[str, Path]:
    """Folders below `input` and `datasets` that may hold clips, by the name shown to the user."""
    roots = {"input": [folder_paths.get_input_directory()]}
    if "datasets" in folder_paths.folder_names_and_paths:
        roots["datasets"] = folder_paths.get_folder_paths("datasets")
    found: dict[str, Path] = {}
    for label, paths in roots.items():
        for root in paths:
            for folder, children, _ in os.walk(root):
                relative = Path(folder).relative_to(root)
                children[:] = sorted(c for c in children if not c.startswith("."))
                if len(relative.parts) >= _DEEPEST:
                    children.clear()
                if relative.parts:
                    found.setdefault(f"{label}/{relative.as_posix()}", Path(folder))
    return found


class TrainingClips(io.ComfyNode):
    """Reads the few clips that share a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_TrainingClips",
            display_name="LAMP Training Clips",
            category="LAMP/training",
            description="Read 8 to 16 short clips that share one motion, ready for LAMP Trainer. "
            "A text file beside a clip (clip.mp4, clip.txt) is its caption.",
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *clip_folders()],
                    tooltip="Folder below ComfyUI's input folder (or datasets) that holds the "
                    "clips: mp4, mov, webm, mkv, gif, or sub-folders of images.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    tooltip="The motion in words, such as 'a horse runs'. Empty: the folder's name."
                    " {motion} in a caption file stands for it.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=128,
                    tooltip="How many frames of a clip are learned at a time, and how many the "
                    "videos will best have; the paper takes 16.",
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=32,
                    max=2048,
                    step=8,
                    tooltip="The width that the clips are brought to, a multiple of 8.",
                ),
                io.Int.Input(
                    "height",
                    default=320,
                    min=32,
                    max=2048,
                    step=8,
                    tooltip="The height that the clips are brought to, a multiple of 8.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=120.0,
                    tooltip="Bring all videos to this frame rate first; 0 leaves them as they are. "
                    "Images have no frame rate and stay as they are.",
                ),
                io.Int.Input(
                    "stride",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Take every n-th frame: 2 makes the motion twice as fast.",
                ),
                io.Combo.Input(
                    "fit",
                    options=["crop", "pad", "stretch"],
                    tooltip="How clips of another shape are fitted: crop keeps the proportions.",
                ),
                io.Combo.Input(
                    "short_clips",
                    options=["error", "skip", "loop"],
                    tooltip="What happens to a clip with fewer frames than are to be learned.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    tooltip="Mirror clips at random. Leave it off for motions with a direction.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Clips from other nodes instead of a folder: a list of IMAGE batches, "
                    "one batch a clip.",
                ),
            ],
            outputs=[
                LampClips.Output(display_name="clips", tooltip="The clips, for LAMP Trainer."),
                io.String.Output(
                    display_name="report", tooltip="Size, frames and motion of every clip."
                ),
                io.Image.Output(
                    display_name="contact_sheet", tooltip="Some frames of every clip in rows."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: list[str], **_: Any) -> str:
        """Run again when a file in the folder changed."""
        path = clip_folders().get(folder[0])
        if path is None:
            return folder[0]
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return ";".join(f"{p.name}:{p.stat().st_mtime_ns}:{p.stat().st_size}" for p in files)

    @classmethod
    @named_errors("LAMP Training Clips")
    def execute(
        cls,
        folder: list[str],
        prompt: list[str],
        images: list[Any] | None = None,
        **settings: list[Any],
    ) -> io.NodeOutput:
        chosen = {name: values[0] for name, values in settings.items()}
        chosen["fps"] = chosen["fps"] or None
        chosen["short"] = chosen.pop("short_clips")
        if images is not None and folder[0] == NO_FOLDER:
            clips = clips_from_images(images, prompt, **chosen)
        elif folder[0] == NO_FOLDER:
            raise ClipError("Choose a folder of clips, or connect images.")
        elif images is not None:
            raise ClipError(f"Both images and the folder '{folder[0]}' are given: choose one.")
        else:
            progress = NodeProgress(cls.hidden.unique_id)
            clips = load_clips(
                clip_folders()[folder[0]], prompt[0], **chosen, progress=progress.update
            )
        for warning in clips.warnings:
            logger.warning(warning)
        report = clips.report()
        sheet = clips.contact_sheet()
        return io.NodeOutput(clips, report, sheet, ui=ui.PreviewImage(sheet, cls=cls))


NODES: list[type[io.ComfyNode]] = [TrainingClips]
