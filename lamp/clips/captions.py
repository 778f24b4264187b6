"""Captions of training clips, from a text file beside the clip or the motion prompt."""

import codecs
import contextlib
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from ..errors import ClipError

MOTION = "{motion}"
"""Placeholder: in a caption for the motion prompt, in a motion prompt for the folder's name."""

CAPTION_ENDINGS = (".txt", ".caption")
"""Of caption files, by precedence; kohya's scripts write the second."""

_LARGEST = 100_000  # bytes; text encoders read a few hundred

# Invisible, although their Unicode category says letter or symbol.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0\u034f"
_LEFT_OR_RIGHT = r"\b(left|right|leftwards?|rightwards?)\b|[左右]"
_SIDES = re.compile(
    rf"{_LEFT_OR_RIGHT}|\b(clockwise|counter-?clockwise|anti-?clockwise)\b"
    r"|顺时针|逆时针|順時針|逆時針",
    re.IGNORECASE,
)
_DIRECTIONS = re.compile(
    rf"{_LEFT_OR_RIGHT}|\b(up|down|upwards?|downwards?|falls?|rises?)\b"
    r"|[向往][上下]|上升|下降|落",
    re.IGNORECASE,
)


class Caption(NamedTuple):
    """A clip's caption, its source, and a warning for the user."""

    text: str
    source: str
    warning: str = ""


def motion_from_folder(folder: str | Path) -> str:
    """The folder's name as words: ``clips/horse_run`` -> ``horse run``; Windows paths too."""
    name = re.split(r"[\\/]+", str(folder).rstrip("\\/"))[-1]
    return _words(name.replace("_", " "))


def find_caption(clip: Path, prompt: str = "") -> Caption:
    """The caption of ``clip``: from ``clip.txt`` or ``clip.caption`` beside it, else the prompt,
    else the folder's name.

    ``{motion}`` in a caption file becomes the motion prompt. An empty file is ignored with a
    warning. Raises ClipError if the file is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    folder = motion_from_folder(clip.absolute().parent)
    motion = _words(prompt).replace(MOTION, folder)
    fallback = Caption(motion, "prompt") if motion else Caption(folder, "folder")
    file = _caption_file(clip)
    if file is None:
        return fallback
    text = _read(file)
    if not text:
        warning = f"The caption file '{file.name}' is empty, '{fallback.text}' is used instead."
        return fallback._replace(warning=warning)
    return Caption(text.replace(MOTION, fallback.text), "file")


def plain_name(name: str) -> str:
    """A normalised name: systems encode umlauts in two ways, and some ignore case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def given_caption(text: str, clip: Path | None = None) -> Caption:
    """A caption given with a clip; `clip` is its file, if there is one.

    ``{motion}`` becomes the name of the file's folder. An empty text is replaced by what
    ``find_caption`` finds for the file, or stays empty without one, with a warning.
    """
    text = _words(text)
    if not text:
        fallback = find_caption(clip) if clip else Caption("", "given")
        used = f", '{fallback.text}' is used instead" if clip else ""
        return fallback._replace(warning=f"The given caption is empty{used}.")
    if clip:
        return Caption(text.replace(MOTION, motion_from_folder(clip.absolute().parent)), "given")
    if MOTION in text:
        text = " ".join(text.replace(MOTION, "").split())
        return Caption(text, "given", f"{MOTION} in the caption has no value and is removed.")
    return Caption(text, "given")


def names_a_side(caption: str) -> bool:
    """Whether mirroring would contradict the caption (left, right, clockwise)."""
    return bool(_SIDES.search(caption))


def names_a_direction(caption: str) -> bool:
    """Whether turning the picture far would contradict the caption (left, up, falls)."""
    return bool(_DIRECTIONS.search(caption))


def _caption_file(clip: Path) -> Path | None:
    """The text file of a clip, preferably with exactly its name."""
    stem = clip.name if clip.is_dir() else clip.stem
    for ending in CAPTION_ENDINGS:
        with contextlib.suppress(OSError):  # the name may become too long
            if (exact := clip.with_name(stem + ending)).is_file():
                return exact
    try:
        names = sorted(path.name for path in clip.absolute().parent.iterdir())
    except OSError:  # reported when the clip is read
        return None
    for ending in CAPTION_ENDINGS:
        for name in names:
            same = name.lower().endswith(ending) and plain_name(name[: -len(ending)])
            if same == plain_name(stem) and (found := clip.with_name(name)).is_file():
                return found
    return None


def _words(text: str) -> str:
    """On one line; empty if nothing in it is visible."""
    # File names can hold bytes that are not text; joined files hold byte order marks inside.
    text = text.encode(errors="replace").decode().replace("\ufeff", "")
    words = " ".join(text.split())
    return words if any(map(_is_visible, words)) else ""


def _is_visible(sign: str) -> bool:
    # Combining marks are only visible on letters.
    return unicodedata.category(sign)[0] not in "CMZ" and sign not in _BLANK


def _read(file: Path) -> str:
    try:
        if (size := file.stat().st_size) > _LARGEST:
            raise ClipError(
                f"The caption file '{file.name}' has {size:,} bytes, more than {_LARGEST:,}. "
                "Replace it with a text that describes the clip, or remove it."
            )
        data = file.read_bytes()
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ClipError(_not_text(file)) from error
    except OSError as error:
        raise ClipError(f"The caption file '{file.name}' cannot be read: {error}.") from error
    # UTF-16 without a byte order mark, and binary files.
    if any(unicodedata.category(sign) in ("Cc", "Cn") and not sign.isspace() for sign in text):
        raise ClipError(_not_text(file))
    return _words(text)


def _not_text(file: Path) -> str:
    return f"The caption file '{file.name}' is not UTF-8 text. Save it with that encoding."
