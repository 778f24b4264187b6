"""Training clips: read, fitted to one size, captioned, and cut into windows of frames."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from .captions import Caption, find_caption, names_a_side
from .clip_sources import BatchSource, ClipSource, FileSource
from .decoding import SourceFrame
from .errors import ClipError, LampError
from .images import Fit, check_size
from .video import (
    ClipInfo,
    fitted,
    list_clips,
    probe,
    read_frames,
    resample,
)

__all__ = [
    "ClipInfo",
    "ClipSet",
    "ClipSettings",
    "Window",
    "clips_from_images",
    "list_clips",
    "load_clips",
    "probe",
    "read_frames",
]

Short = Literal["error", "skip", "loop"]


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut: windows of ``frames`` frames of ``width`` x ``height`` pixels.

    - ``fps``: the clips are brought to this rate first, by the nearest frames (None: left alone);
    - ``stride``: a window takes every ``stride``-th frame;
    - ``flip``: windows are mirrored with probability 1/2;
    - ``short``: a clip with too few frames is an ``error``, left out (``skip``) or started over
      until it suffices (``loop``);
    - ``fit``: how pictures of another shape are fitted, see ``fit_images``;
    - ``max_frames``: of a longer clip only the beginning is read.

    Raises LampError for a value that cannot be used.
    """

    frames: int = 16
    width: int = 512
    height: int = 320
    fps: float | None = None
    stride: int = 1
    flip: bool = False
    short: Short = "error"
    fit: Fit = "crop"
    max_frames: int = 480

    def __post_init__(self) -> None:
        check_size(self.width, self.height)
        if self.frames < 2:
            raise LampError(
                f"A video needs at least 2 frames, not {self.frames}: frame 1 is given, the others "
                "are learned. Usual is 16."
            )
        if self.stride < 1:
            raise LampError(f"The stride must be 1 or more, not {self.stride}.")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise LampError(f"The frame rate must lie between 0 and 1000, not {self.fps:g}.")
        for name, value, choices in (("short", self.short, Short), ("fit", self.fit, Fit)):
            if value not in get_args(choices):
                listed = ", ".join(get_args(choices))
                raise LampError(f"Unknown choice '{value}' for {name}. Choose one of: {listed}.")

    @property
    def span(self) -> int:
        """Frames from a window's first to its last, both counted."""
        return (self.frames - 1) * self.stride + 1


@dataclass(frozen=True)
class Window:
    """One piece of a clip to learn from: the clip's number, its first frame, mirrored or not."""

    clip: int
    start: int
    flipped: bool = False


@dataclass(frozen=True)
class Clip:
    """One clip: where its frames come from and which of them are used.

    ``once`` is the number of frames at the asked rate and up to the cap, ``length`` that which the
    clip is given: with more than ``once`` it starts over. ``size`` is (width, height).
    """

    source: ClipSource
    info: ClipInfo
    size: tuple[int, int]
    once: int
    length: int


@dataclass
class ClipSet:
    """Clips ready for training. It holds where frames come from, not the frames: these are decoded
    as they are asked for.

    The stride is applied by the windows, so that every possible start counts. ``warnings`` are
    sentences for the user.
    """

    sources: list[Clip]
    settings: ClipSettings
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def infos(self) -> list[ClipInfo]:
        """What is known of each clip."""
        return [clip.info for clip in self.sources]

    @property
    def captions(self) -> list[str]:
        """One caption for each clip."""
        return [info.caption for info in self.infos]

    def length(self, clip: int) -> int:
        """Frames of a clip, at the asked rate, up to the cap, started over if it was too short."""
        return self.sources[clip].length

    def size(self, clip: int) -> tuple[int, int]:
        """Width and height of a clip's frames, in pixels."""
        return self.sources[clip].size

    def chunks(self, clip: int, count: int = 16, mirrored: bool = False) -> Iterator[Tensor]:
        """All frames of a clip in order, at most ``count`` at a time: ``f h w 3`` uint8.

        Raises ClipError if the clip can no longer be read as it was.
        """
        pictures: list[Tensor] = []
        for picture in self._pictures(clip, range(self.length(clip))):
            pictures.append(picture.flip(1) if mirrored else picture)
            if len(pictures) == count:
                yield torch.stack(pictures)
                pictures = []
        if pictures:
            yield torch.stack(pictures)

    def key(self, clip: int) -> str:
        """Hex sha256 that names what ``chunks`` yields (not mirrored): the content of the clip and
        the settings that shape its frames. The content is read once, but not decoded."""
        chosen = self.sources[clip]
        shape = {
            "format": 1,  # to be raised when the same content gives other frames
            "content": chosen.source.digest,
            "size": chosen.size,
            "fit": self.settings.fit,
            "fps": self.settings.fps if chosen.info.fps else None,
            "once": chosen.once,
            "length": chosen.length,
        }
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()

    def starts(self, clip: int) -> int:
        """Number of windows in a clip: one for each frame that a window can start at."""
        return max(self.length(clip) - self.settings.span + 1, 0)

    def windows(self) -> list[Window]:
        """Every possible window, not mirrored, in order."""
        return [
            Window(clip, start) for clip in range(len(self)) for start in range(self.starts(clip))
        ]

    def sample_window(self, generator: torch.Generator, clip: int | None = None) -> Window:
        """A random window: of any clip with equal chance (or of ``clip``), at any start.

        Always draws three numbers, so that the settings do not shift what comes after.
        """
        pick, start, mirror = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        clip = int(pick * len(self)) if clip is None else clip
        return Window(clip, int(start * self.starts(clip)), self.settings.flip and mirror < 0.5)

    def frame_numbers(self, window: Window) -> slice:
        """The window's frames in its clip, also of anything computed for each frame of it."""
        return slice(window.start, window.start + self.settings.span, self.settings.stride)

    def window_frames(self, window: Window) -> Tensor:
        """The window's pictures, decoded now: ``f h w 3`` uint8."""
        numbers = range(self.length(window.clip))[self.frame_numbers(window)]
        frames = self.frames(window.clip, numbers)
        return frames.flip(2) if window.flipped else frames

    def frames(self, clip: int, numbers: Sequence[int]) -> Tensor:
        """Some frames of a clip, by rising numbers from 0: ``f h w 3`` uint8.

        Decoding stops after the last one, and only these become pixels.
        """
        return torch.stack(list(self._pictures(clip, numbers)))

    def _pictures(self, clip: int, numbers: Sequence[int]) -> Iterator[Tensor]:
        chosen, wanted = self.sources[clip], iter(numbers)
        following = next(wanted, None)
        for number, frame in enumerate(_played(chosen, self.settings)):
            if number == following:
                yield _picture(frame, chosen, self.settings)
                following = next(wanted, None)
            if following is None:
                return

    def report(self) -> str:
        """What there is to learn from, clip by clip, and what to watch out for: plain text."""
        from .clip_report import report

        return report(self)

    def contact_sheet(self) -> Tensor:
        """Some frames of every clip, a row for each: IMAGE ``1 h w 3`` in 0..1."""
        from .clip_report import contact_sheet

        return contact_sheet(self)


def load_clips(
    source: str | Path | Sequence[str | Path],
    prompt: str = "",
    frames: int = 16,
    width: int = 512,
    height: int = 320,
    *,
    fps: float | None = None,
    stride: int = 1,
    flip: bool = False,
    short: Short = "error",
    fit: Fit = "crop",
    max_frames: int = 480,
    progress: Callable[[int, int], None] | None = None,
) -> ClipSet:
    """Read the clips of a folder (or a list of files) with their captions.

    For the settings see ``ClipSettings``, for the captions ``captions.find_caption``; ``prompt``
    is the motion, by default the folder's name. ``progress`` is called with (done, total) before
    each clip and at the end; what it raises ends the reading.
    Raises ClipError if there is no clip, or one cannot be read or is too short.
    """
    settings = ClipSettings(frames, width, height, fps, stride, flip, short, fit, max_frames)
    if isinstance(source, (str, Path)):
        paths = list_clips(source)
    else:
        paths = [Path(path) for path in source]
    jobs = (partial(_find_clip, path, prompt, settings) for path in paths)
    return _collect(jobs, len(paths), settings, progress)


def clips_from_images(
    images: Sequence[Tensor],
    prompts: str | Sequence[str],
    frames: int = 16,
    width: int = 512,
    height: int = 320,
    *,
    rates: Sequence[float] | None = None,
    fps: float | None = None,
    stride: int = 1,
    flip: bool = False,
    short: Short = "error",
    fit: Fit = "crop",
    max_frames: int = 480,
) -> ClipSet:
    """Clips from IMAGE batches ``f h w c`` in 0..1 (c is 1, 3 or 4), one clip each.

    ``prompts`` is one caption for all or one for each; ``rates`` are the clips' frames per second
    where known: ``fps`` has no effect without. Raises ClipError for batches of another shape or
    with NaN, for counts that do not agree, and for clips that are too short.
    """
    settings = ClipSettings(frames, width, height, fps, stride, flip, short, fit, max_frames)
    captions = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    captions = captions * len(images) if len(captions) == 1 else captions
    for name, values in (("captions", captions), ("frame rates", rates)):
        if values is not None and len(values) != len(images):
            raise ClipError(
                f"There are {len(images)} clips but {len(values)} {name}. Give one for each clip."
            )
    given = zip(images, captions, rates or [None] * len(images), strict=True)
    jobs = (
        partial(_take_images, f"clip {number}", *each, settings)
        for number, each in enumerate(given, start=1)
    )
    return _collect(jobs, len(images), settings, None)


def _collect(
    jobs: Iterable[Callable[[], tuple[Clip, list[str]]]],
    total: int,
    settings: ClipSettings,
    progress: Callable[[int, int], None] | None,
) -> ClipSet:
    """Read clip after clip, apply the rule for short ones, gather the warnings."""
    clips = ClipSet([], settings)
    tell = progress or (lambda done, total: None)
    for done, job in enumerate(jobs):
        tell(done, total)
        clip, warnings = job()
        clips.warnings += warnings
        long_enough = _long_enough(clip, settings, clips.warnings)
        if long_enough is not None:
            clips.sources.append(long_enough)
    tell(total, total)
    if not clips.sources:
        raise ClipError(
            f"No clip is left to learn from: of {total} none has the {settings.span} frames that a "
            "window needs. Give longer clips, fewer frames or a smaller stride."
        )
    clips.warnings += _side_warnings(clips)
    return clips


def _long_enough(clip: Clip, settings: ClipSettings, warnings: list[str]) -> Clip | None:
    """The clip, made longer or refused by the rule for short clips; None: left out."""
    have, need = clip.once, settings.span
    if have >= need:
        return clip
    at = f" at {settings.fps:g} fps" if settings.fps and clip.info.fps else ""
    what = f"'{clip.info.name}' has {have} frames{at}, a window needs {need}"
    if settings.short == "error":
        raise ClipError(
            f"{what} ({settings.frames} frames, stride {settings.stride}). Give a longer clip, "
            "fewer frames or a smaller stride, or let short clips be skipped or looped."
        )
    if settings.short == "skip":
        warnings.append(f"{what}: it is left out.")
        return None
    warnings.append(f"{what}: it starts over from its first frame, which shows as a jump.")
    return replace(clip, length=need)


def _side_warnings(clips: ClipSet) -> list[str]:
    sided = [info for info in clips.infos if names_a_side(info.caption)]
    if not clips.settings.flip or not sided:
        return []
    more = f" and {len(sided) - 1} more" if len(sided) > 1 else ""
    return [
        f"Clips are mirrored at random, but the caption of '{sided[0].name}'{more} names a side or "
        f"a turn: '{sided[0].caption}'. Switch the flip off."
    ]


def _find_clip(path: Path, prompt: str, settings: ClipSettings) -> tuple[Clip, list[str]]:
    return _measure(FileSource(path), find_caption(path, prompt), settings)


def _take_images(
    name: str, batch: Tensor, prompt: str, rate: float | None, settings: ClipSettings
) -> tuple[Clip, list[str]]:
    caption = Caption(" ".join(prompt.split()), "given")
    if not caption.text:
        caption = caption._replace(warning=f"The caption of {name} is empty.")
    return _measure(BatchSource(name, batch, rate), caption, settings)


def _measure(
    source: ClipSource, caption: Caption, settings: ClipSettings
) -> tuple[Clip, list[str]]:
    """Find out how many frames a clip gives at the asked rate, up to the cap, by decoding them:
    what cannot be read is met now and not in the middle of the work."""
    warnings = [f"{source.name}: {caption.warning}"] if caption.warning else []
    info = replace(source.info(), caption=caption.text, caption_source=caption.source)
    most, count = max(settings.max_frames, settings.span), 0
    with contextlib.closing(source.frames()) as frames:
        for _ in resample(frames, settings.fps) if settings.fps else frames:
            if count == most:
                warnings.append(
                    f"'{info.name}' is long ({info.frames} frames): only the first {most} are "
                    "used. Cut it to the motion."
                )
                break
            count += 1
    return Clip(source, info, (settings.width, settings.height), count, count), warnings


def _played(clip: Clip, settings: ClipSettings) -> Iterator[SourceFrame]:
    """The clip's frames at the asked rate, as often as its length asks for."""
    left = clip.length
    while left:
        wanted, count = min(left, clip.once), 0
        with contextlib.closing(clip.source.frames()) as source:
            frames = resample(source, settings.fps) if settings.fps else source
            for frame in islice(frames, wanted):
                yield frame
                count += 1
        if count < wanted:
            raise ClipError(
                f"'{clip.info.name}' had {clip.once} frames when it was read, now it has {count}. "
                "Read the clips again."
            )
        left -= count


def _picture(frame: SourceFrame, clip: Clip, settings: ClipSettings) -> Tensor:
    path = clip.info.path or Path(clip.info.name)
    return fitted(frame, path, *clip.size, settings.fit)
