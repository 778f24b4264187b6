"""LAMP Training Clips."""

from __future__ import annotations

import contextlib
import inspect
import os
import stat
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import InputImpl, io

from ..lamp.clips.clip_set import ClipSet
from ..lamp.clips.decoding.choose import check_kind
from ..lamp.clips.decoding.reader import VideoBytes, reading
from ..lamp.clips.listing import find_clips
from ..lamp.clips.load import clips_from_sources, image_sources
from ..lamp.clips.report import contact_sheet, describe_clips
from ..lamp.clips.settings import ClipSettings
from ..lamp.clips.sources import BatchSource, ClipSource, FileSource
from ..lamp.errors import ClipError
from ..lamp.plain import log
from .common import aliases, named_errors, plain_errors, progress_of
from .progress import image_and_text
from .recipe import setting_input

LampClips = io.Custom("LAMP_CLIPS")
NO_FOLDER = "(from images)"
_DEEPEST = 3


def clip_folders() -> dict[str, Path]:
    """The folders below `input` and `datasets` that may hold clips, by their names in the menu."""
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


def _size_input(name: str, default: int, tooltip: str) -> Any:
    return io.Int.Input(name, default=default, min=32, max=2048, step=8, tooltip=tooltip)


class TrainingClips(io.ComfyNode):
    """Read the clips of a motion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LAMP_TrainingClips",
            display_name="LAMP Training Clips",
            category="LAMP/training",
            description="Reads 8 to 16 short clips with the same motion, for LAMP Trainer. A text "
            "file next to a clip (clip.mp4, clip.txt) is its caption.",
            is_input_list=True,
            **aliases("training data", "video dataset", "load clips", "captions"),
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[NO_FOLDER, *clip_folders()],
                    tooltip="Folder with the clips, in ComfyUI's input folder (or datasets): "
                    "videos, animated images, or one subfolder of images per clip. Press R to "
                    "refresh.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    tooltip="The motion in words, such as: a horse runs. Empty uses the folder "
                    "name. {motion} in a caption file stands for it. Connect a list of texts to "
                    "give each clip its own caption.",
                ),
                io.Int.Input(
                    "frames",
                    default=16,
                    min=2,
                    max=128,
                    tooltip="Frames per training sample. The paper uses 16. Generate videos with "
                    "the same number.",
                ),
                _size_input(
                    "width", 512, "Width in pixels that clips are scaled to, a multiple of 8."
                ),
                _size_input(
                    "height", 320, "Height in pixels that clips are scaled to, a multiple of 8."
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=120.0,
                    tooltip="Convert all videos to this frame rate first. 0 keeps their own rates. "
                    "Images have no frame rate and are not converted.",
                ),
                io.Int.Input(
                    "stride",
                    default=1,
                    min=1,
                    max=16,
                    tooltip="Use every n-th frame: 2 doubles the speed of the motion.",
                ),
                io.Combo.Input(
                    "fit",
                    options=["crop", "pad", "stretch"],
                    tooltip="How to fit clips with another aspect ratio: crop cuts the edges, pad "
                    "adds black bars, stretch distorts the image.",
                ),
                io.Combo.Input(
                    "short_clips",
                    options=["error", "skip", "loop"],
                    tooltip="What to do with a clip that has too few frames: error stops and names "
                    "it, skip leaves it out, loop repeats it from the start.",
                ),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    tooltip="Mirror clips at random. Leave it off for motions with a direction.",
                ),
                io.Boolean.Input(
                    "bucket",
                    default=False,
                    optional=True,
                    tooltip="Off: all clips get width x height, as in the paper. On: each clip "
                    "gets a size close to its own aspect ratio, with no larger area. Use it to mix "
                    "portrait and landscape clips.",
                ),
                *(
                    setting_input(name, ClipSettings, optional=True)
                    for name in ("copies", "turn", "zoom", "shift")
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Clips from other nodes instead of a folder: a list of IMAGE batches, "
                    "one per clip.",
                ),
                io.Video.Input(
                    "videos",
                    optional=True,
                    tooltip="Clips from other nodes instead of a folder: a list of videos. Video "
                    "files are read a few frames at a time.",
                ),
            ],
            outputs=[
                LampClips.Output(display_name="clips", tooltip="Clips for LAMP Trainer."),
                io.String.Output(
                    display_name="report",
                    tooltip="Size, frames and amount of motion of every clip, and warnings.",
                ),
                io.Image.Output(
                    display_name="contact_sheet",
                    tooltip="Some frames of every clip, in rows, and of some distorted copies.",
                ),
            ],
        )

    @classmethod
    @plain_errors
    def fingerprint_inputs(cls, folder: list[str], **_: Any) -> str:
        """Run again when a file in the folder has changed."""
        path = clip_folders().get(folder[0])
        if path is None:
            return folder[0]
        seen = []
        for file in sorted(path.rglob("*")):
            with contextlib.suppress(OSError):  # deleted meanwhile, or a broken link
                about = file.stat()
                if stat.S_ISREG(about.st_mode):
                    name = file.relative_to(path).as_posix()
                    seen.append(f"{name}:{about.st_mtime_ns}:{about.st_size}")
        return ";".join(seen)

    @classmethod
    @named_errors("LAMP Training Clips", ("folder",))
    def execute(
        cls,
        folder: list[str],
        prompt: list[str],
        images: list[Any] | None = None,
        videos: list[Any] | None = None,
        **settings: list[Any],
    ) -> io.NodeOutput:
        chosen = {name: values[0] for name, values in settings.items()}
        chosen["fps"] = chosen["fps"] or None
        chosen["short"] = chosen.pop("short_clips")
        sources, notes = find_sources(folder[0], images or [], videos or [])
        clips = clips_from_sources(
            sources, prompt, ClipSettings(**chosen), progress_of(cls).update, notes
        )
        clips.warnings += _uncaptioned(clips) if videos else []
        for warning in clips.warnings:
            log.warning(warning)
        report, sheet = describe_clips(clips), contact_sheet(clips)
        shown = image_and_text(sheet, _summary(clips, report), cls)
        return io.NodeOutput(clips, report, sheet, ui=shown)


def _uncaptioned(clips: ClipSet) -> list[str]:
    """VIDEOs that are named after the folder of their files, which nobody has chosen for it."""
    named = [info for info in clips.infos if info.caption_source == "folder"]
    if not named:
        return []
    return [
        f"prompt is empty, so '{named[0].caption}', the folder of '{named[0].name}', became its "
        f"caption ({len(named)} of {len(clips)} clips). Set prompt to what the clips show."
    ]


def find_sources(
    folder: str, images: list[Any], videos: list[Any]
) -> tuple[list[ClipSource], list[str]]:
    """The clips of a folder, by its name in the menu, or of other nodes (images, then videos), and
    warnings about files that were left out.

    Raises:
        ClipError: there is no such folder, or not exactly one of folder and other nodes is given.
    """
    given = "images" if images else "videos" if videos else ""
    if folder != NO_FOLDER:
        if given:
            raise ClipError(
                f"Both {given} and the folder '{folder[:100]}' are set. Set folder to "
                f"{NO_FOLDER} or disconnect {given}."
            )
        found = clip_folders().get(folder)
        if found is None:
            raise ClipError(
                f"There is no folder '{folder[:100]}'. Create it, add clips, and press R."
            )
        listing = find_clips(found)
        return [FileSource(path) for path in listing.clips], listing.notes
    if not given:
        raise ClipError("Choose a folder of clips, or connect images or videos.")
    given_videos = (
        video_source(video, f"video {number}") for number, video in enumerate(videos, start=1)
    )
    return [*image_sources(images), *given_videos], []


def video_source(video: Any, name: str) -> ClipSource:
    """The source of the frames of a VIDEO.

    A file is read directly, between the trim marks if the host tells any. Any other VIDEO, such as
    one that is cropped, or trimmed by a host that does not tell where, is decoded by the host.
    """
    if isinstance(video, InputImpl.VideoFromFile):
        found = video.get_stream_source()
        file = Path(found) if isinstance(found, str) else VideoBytes(name, found.getvalue())
        check_kind(file)  # before the host opens it
        with reading(file):
            whole = InputImpl.VideoFromFile(found).get_dimensions() == video.get_dimensions()
            if whole and (window := _trim_window(video, found)) is not None:
                return FileSource(file, *window)
    with reading(name):
        parts = video.get_components()
        images = parts.images
        alpha = getattr(parts, "alpha", None)  # in newer hosts
        if alpha is not None:
            count, *size = images.shape[:3]
            alpha = alpha.reshape(-1, *size, 1).to(images).expand(count, -1, -1, -1)
            images = torch.cat([images[..., :3], alpha], -1)
    return BatchSource(name, [images], float(parts.frame_rate))


def _trim_window(video: Any, file: Any) -> tuple[float, float | None] | None:
    """Begin and end of a trimmed VIDEO in seconds; None if the host does not tell them.

    ComfyUI 0.3 cannot trim, and 0.14 to 0.22 keep the window to themselves.
    """
    if hasattr(video, "get_active_trim_window"):
        start, duration = video.get_active_trim_window()  # a duration of 0 means up to the end
        return start, start + duration if duration else None
    kind = InputImpl.VideoFromFile
    can_trim = "start_time" in inspect.signature(kind.__init__).parameters
    if can_trim and kind(file).get_duration() != video.get_duration():
        return None
    return 0.0, None


def _summary(clips: ClipSet, report: str) -> str:
    return "\n".join([report.splitlines()[0], *(f"Warning: {text}" for text in clips.warnings)])


NODES: list[type[io.ComfyNode]] = [TrainingClips]
