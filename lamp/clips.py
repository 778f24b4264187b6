"""Training clips: read, fitted to one size, captioned, and cut into windows of frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from .captions import Caption, find_caption, names_a_side
from .decoding import SourceFrame, source_frames
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


@dataclass
class ClipSet:
    """Clips ready for training: ``clips[i]`` is ``f h w 3`` uint8, all its frames at full rate.

    The stride is applied by the windows, so that every possible start counts. ``warnings`` are
    sentences for the user.
    """

    clips: list[Tensor]
    infos: list[ClipInfo]
    settings: ClipSettings
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def captions(self) -> list[str]:
        """One caption for each clip."""
        return [info.caption for info in self.infos]

    def starts(self, clip: int) -> int:
        """Number of windows in a clip: one for each frame that a window can start at."""
        return max(self.clips[clip].shape[0] - self.settings.span + 1, 0)

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
        """The window's pictures: ``f h w 3`` uint8."""
        frames = self.clips[window.clip][self.frame_numbers(window)]
        return frames.flip(2) if window.flipped else frames

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
    return _collect((partial(_read_clip, path, prompt, settings) for path in paths), len(paths),
                    settings, progress)  # fmt: skip


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
    jobs = (
        partial(_take_images, number, batch, captions[number - 1],
                rates[number - 1] if rates else None, settings)
        for number, batch in enumerate(images, start=1)
    )  # fmt: skip
    return _collect(jobs, len(images), settings, None)


@dataclass
class _Clip:
    """One clip read, before it is decided whether it is long enough."""

    frames: Tensor
    info: ClipInfo
    warnings: list[str]


def _collect(
    jobs: Iterable[Callable[[], _Clip]],
    total: int,
    settings: ClipSettings,
    progress: Callable[[int, int], None] | None,
) -> ClipSet:
    """Read clip after clip, apply the rule for short ones, gather the warnings."""
    clips = ClipSet([], [], settings)
    tell = progress or (lambda done, total: None)
    for done, job in enumerate(jobs):
        tell(done, total)
        clip = job()
        clips.warnings += clip.warnings
        frames = _long_enough(clip, settings, clips.warnings)
        if frames is not None:
            clips.clips.append(frames)
            clips.infos.append(clip.info)
    tell(total, total)
    if not clips.clips:
        raise ClipError(
            f"No clip is left to learn from: of {total} none has the {settings.span} frames that a "
            "window needs. Give longer clips, fewer frames or a smaller stride."
        )
    clips.warnings += _side_warnings(clips)
    return clips


def _long_enough(clip: _Clip, settings: ClipSettings, warnings: list[str]) -> Tensor | None:
    """The clip's frames, made longer or refused by the rule for short clips; None: left out."""
    have, need = clip.frames.shape[0], settings.span
    if have >= need:
        return clip.frames
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
    return clip.frames[torch.arange(need) % have]


def _side_warnings(clips: ClipSet) -> list[str]:
    sided = [info for info in clips.infos if names_a_side(info.caption)]
    if not clips.settings.flip or not sided:
        return []
    more = f" and {len(sided) - 1} more" if len(sided) > 1 else ""
    return [
        f"Clips are mirrored at random, but the caption of '{sided[0].name}'{more} names a side or "
        f"a turn: '{sided[0].caption}'. Switch the flip off."
    ]


def _read_clip(path: Path, prompt: str, settings: ClipSettings) -> _Clip:
    caption = find_caption(path, prompt)
    info = replace(probe(path), caption=caption.text, caption_source=caption.source)
    source = source_frames(path)
    with contextlib.closing(source):
        return _fit_clip(source, info, caption, settings)


def _take_images(
    number: int, batch: Tensor, prompt: str, rate: float | None, settings: ClipSettings
) -> _Clip:
    name = f"clip {number}"
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4) or 0 in batch.shape:
        raise ClipError(
            f"Images of {name} must have the shape f h w c with 1, 3 or 4 channels, not "
            f"{tuple(batch.shape)}."
        )
    if not torch.isfinite(batch).all():
        raise ClipError(
            f"The images of {name} contain NaN or infinite values. Check the node that made them."
        )
    count, height, width, _ = batch.shape
    caption = Caption(" ".join(prompt.split()), "given")
    if not caption.text:
        caption = caption._replace(warning=f"The caption of {name} is empty.")
    info = ClipInfo(name, None, count, rate, width, height, caption.text, caption.source)
    return _fit_clip(_batch_frames(batch, rate), info, caption, settings)


def _batch_frames(batch: Tensor, rate: float | None) -> Iterator[SourceFrame]:
    for number, image in enumerate(batch):
        yield SourceFrame(number / rate if rate else None, partial(_to_bytes, image))


def _to_bytes(image: Tensor) -> Tensor:
    """``h w c`` in 0..1 -> ``h w 3`` uint8, transparent parts becoming black."""
    image = image.float().cpu().clamp(0.0, 1.0)
    colour = image[..., :3] * image[..., 3:] if image.shape[-1] == 4 else image
    return (colour * 255).round().byte().expand(*image.shape[:2], 3)


def _fit_clip(
    source: Iterator[SourceFrame], info: ClipInfo, caption: Caption, settings: ClipSettings
) -> _Clip:
    """Bring one clip to the asked rate and size, frame by frame, up to the cap."""
    warnings = [f"{info.name}: {caption.warning}"] if caption.warning else []
    frames = resample(source, settings.fps) if settings.fps else source
    most = max(settings.max_frames, settings.span)
    kept: list[Tensor] = []
    for frame in frames:
        if len(kept) == most:
            warnings.append(
                f"'{info.name}' is long ({info.frames} frames): only the first {most} are used. "
                "Cut it to the motion."
            )
            break
        kept.append(
            fitted(
                frame, info.path or Path(info.name), settings.width, settings.height, settings.fit
            )
        )
    return _Clip(torch.stack(kept), info, warnings)
