"""The clips in a folder, and which files are left out for which reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ClipError
from .captions import CAPTION_ENDINGS, plain_name
from .decoding.choose import image_files, natural_order
from .decoding.pictures import ANIMATED_ENDINGS, IMAGE_ENDINGS, is_animated
from .decoding.reader import reading

VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mp4v", ".mov", ".qt", ".webm", ".mkv", ".avi", ".gif", ".ts", ".mts",
    ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv",
)  # fmt: skip
_MOSTLY_CLIPS = (".webp", ".apng")
_HOUSEKEEPING = ("thumbs.db", "desktop.ini")  # ignored like names that start with a dot
_MOST_NAMES = 1000
_LONGEST_LINE = 1200

NO_CLIP = "unsupported (convert them to mp4)"
SINGLE = "single pictures without motion (put the pictures of a clip into a sub-folder)"
NO_TEXT = "captions without a clip (name a caption file like its clip)"
NO_FILE = "not regular files"
NO_PICTURES = "folders without pictures"
OF_CLIPS = "folders of clips (choose such a folder itself)"


@dataclass
class Listing:
    """The clips of a folder in natural order, and the names of everything else by reason."""

    clips: list[Path] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Sentences that name every file that is left out, short enough to be displayed whole."""
        return [
            f"Left out as {reason}: {line}."
            for reason, names in self.left_out.items()
            for line in _lines(names)
        ]

    def leave_out(self, reason: str, name: str) -> None:
        """Note that a file is not a clip."""
        self.left_out.setdefault(reason, []).append(name)


def find_clips(folder: str | Path) -> Listing:
    """The clips in ``folder``: video files, animated pictures, and sub-folders of images.

    Everything else is named, except for hidden files. Raises ClipError if there is no such folder
    or no clip in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ClipError(f"There is no folder '{folder}'. Choose the folder that holds the clips.")
    paths, listing = _visible(root), Listing()
    texts = [path for path in paths if path.suffix.lower() in CAPTION_ENDINGS]
    for path in paths:
        if path in texts and not path.is_dir():
            continue
        if reason := _reason(path):
            listing.leave_out(reason, path.name)
        else:
            listing.clips.append(path)
            if path.is_dir():
                for file in _visible(path):
                    if file.suffix.lower() not in IMAGE_ENDINGS:
                        listing.leave_out(NO_CLIP, f"{path.name}/{file.name}")
    captioned = {plain_name(clip.name if clip.is_dir() else clip.stem) for clip in listing.clips}
    for path in texts:
        if not path.is_dir() and plain_name(path.stem) not in captioned:
            listing.leave_out(NO_TEXT, path.name)
    if not listing.clips:
        endings = " ".join((*VIDEO_ENDINGS, *_MOSTLY_CLIPS))
        raise ClipError(
            f"There are no clips in '{folder}'. Add videos ({endings}), or a sub-folder of images "
            f"for each clip. {' '.join(listing.notes)}".rstrip()
        )
    return listing


def _visible(folder: Path) -> list[Path]:
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise ClipError(f"The folder '{folder}' cannot be read ({error.strerror}).") from error
    shown = (p for p in paths if not p.name.startswith(".") and p.name.lower() not in _HOUSEKEEPING)
    return sorted(shown, key=natural_order)


def _reason(path: Path) -> str:
    """Why a path is not a clip; empty if it is one."""
    if path.is_dir():
        with reading(path):
            return _folder_reason(path)
    # Reading a pipe would never end. A broken link is reported when it is read.
    if path.exists() and not path.is_file():
        return NO_FILE
    ending = path.suffix.lower()
    animated = is_animated(path) if ending in ANIMATED_ENDINGS else False
    # A broken file of a kind that is mostly animated is reported when it is read.
    if ending in VIDEO_ENDINGS or animated or (animated is None and ending in _MOSTLY_CLIPS):
        return ""
    return SINGLE if ending in IMAGE_ENDINGS or ending in ANIMATED_ENDINGS else NO_CLIP


def _folder_reason(folder: Path) -> str:
    """Why a sub-folder is not a clip; empty if its pictures are the frames of one."""
    pictures = image_files(folder)
    videos = [path for path in folder.iterdir() if path.suffix.lower() in VIDEO_ENDINGS]
    if not pictures:
        return OF_CLIPS if videos else NO_PICTURES
    first = pictures[0]
    animated = first.suffix.lower() in ANIMATED_ENDINGS and is_animated(first)
    return OF_CLIPS if animated or len(videos) >= len(pictures) else ""


def _lines(names: list[str]) -> Iterator[str]:
    shown = [f"'{name}'" for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        shown.append(f"{len(names) - _MOST_NAMES} more")
    line = ""
    for name in shown:
        if line and len(line) + len(name) > _LONGEST_LINE:
            yield line
            line = ""
        line += f", {name}" if line else name
    yield line
