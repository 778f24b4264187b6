"""Captions of training clips: a text file beside the clip, else the motion prompt."""

import re
from pathlib import Path
from typing import NamedTuple

from .errors import ClipError

MOTION = "{motion}"
"""Stands in a caption for the motion prompt, in a motion prompt for the folder's name."""

_LARGEST = 100_000  # bytes; text encoders read a few hundred

_SIDES = re.compile(
    r"\b(left|right|leftwards?|rightwards?|clockwise|counter-?clockwise|anti-?clockwise)\b"
    r"|[左右]|顺时针|逆时针|順時針|逆時針",
    re.IGNORECASE,
)


class Caption(NamedTuple):
    """A clip's caption, where it comes from, and what the user should know about it."""

    text: str
    source: str
    warning: str = ""


def motion_from_folder(folder: str | Path) -> str:
    """The folder's name as words: ``clips/horse_run`` -> ``horse run``; Windows paths too."""
    name = re.split(r"[\\/]+", str(folder).rstrip("\\/"))[-1]
    return _words(name.replace("_", " "))


def find_caption(clip: Path, prompt: str = "") -> Caption:
    """The caption of ``clip``: of ``clip.txt`` beside it, else the prompt, else the folder's name.

    ``{motion}`` in a caption file becomes the motion prompt. An empty file counts as none, with a
    warning. Raises ClipError if the file is not UTF-8 text (a byte order mark does no harm).
    """
    folder = motion_from_folder(clip.absolute().parent)
    motion = _words(prompt).replace(MOTION, folder)
    fallback = Caption(motion, "prompt") if motion else Caption(folder, "folder")
    file = clip.with_name(f"{clip.name if clip.is_dir() else clip.stem}.txt")
    if not file.is_file():
        return fallback
    text = _read(file)
    if not text:
        warning = f"The caption file '{file.name}' is empty: '{fallback.text}' is used."
        return fallback._replace(warning=warning)
    return Caption(text.replace(MOTION, fallback.text), "file")


def given_caption(text: str, clip: Path | None = None) -> Caption:
    """A caption that came with a clip from another node; `clip` is its file, if it has one.

    ``{motion}`` becomes the name of the file's folder. For an empty text stands what
    ``find_caption`` finds for the file; without one it stays empty. Both with a warning.
    """
    text = _words(text)
    if not text:
        fallback = find_caption(clip) if clip else Caption("", "given")
        used = f": '{fallback.text}' is used" if clip else ""
        return fallback._replace(warning=f"The given caption is empty{used}.")
    if clip:
        return Caption(text.replace(MOTION, motion_from_folder(clip.absolute().parent)), "given")
    if MOTION in text:
        text = " ".join(text.replace(MOTION, "").split())
        return Caption(text, "given", f"Nothing is known that {MOTION} in the caption stands for.")
    return Caption(text, "given")


def names_a_side(caption: str) -> bool:
    """Whether a mirrored picture would contradict the caption (left, right, clockwise)."""
    return bool(_SIDES.search(caption))


def _words(text: str) -> str:
    # Names on a disk may hold bytes that are no text, which no text encoder takes.
    return " ".join(text.encode(errors="replace").decode().split())


def _read(file: Path) -> str:
    try:
        if (size := file.stat().st_size) > _LARGEST:
            raise ClipError(
                f"The caption file '{file.name}' has {size:,} bytes, a caption at most "
                f"{_LARGEST:,}. Put the text that describes the clip there, or take it away."
            )
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ClipError(
            f"The caption file '{file.name}' is not UTF-8 text. Save it again with that encoding."
        ) from error
    except OSError as error:
        raise ClipError(f"The caption file '{file.name}' cannot be read: {error}.") from error
