"""Training clips: read, fitted, captioned, looked at, and cut into windows of frames."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import ClipError
from .captions import Caption, find_caption, given_caption, names_a_side
from .clip_set import Clip, ClipSet, Window, same_rate
from .decoding.choose import Tally
from .decoding.reader import SourceFrame, reading
from .images import Fit, fit_small
from .listing import list_clips, look_into
from .movement import MotionMeter, Movement, look_size, movement_hints
from .settings import ClipSettings, Short, share_kept
from .sources import BatchSource, ClipSource, FileSource
from .video import ClipInfo, probe, read_frames, resample

__all__ = [
    "BatchSource",
    "ClipInfo",
    "ClipSet",
    "ClipSettings",
    "FileSource",
    "Window",
    "clips_from_images",
    "clips_from_sources",
    "image_sources",
    "list_clips",
    "load_clips",
    "probe",
    "read_frames",
]

PULSE = 60
"""Frames after which a cancel is let through."""
LEAST_KEPT = 0.7
"""Cropping that leaves less of a picture than this is worth a word."""


def load_clips(
    source: str | Path | Sequence[str | Path],
    prompt: str | Sequence[str] = "",
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
    bucket: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ClipSet:
    """Read the clips of a folder (or a list of files) with their captions.

    For the settings see ``ClipSettings``, for ``prompt`` and ``progress`` ``clips_from_sources``.
    Raises ClipError if there is no clip, or one cannot be read or is too short.
    """
    settings = ClipSettings(
        frames, width, height, fps, stride, flip, short, fit, max_frames, bucket
    )
    notes: list[str] = []
    if isinstance(source, (str, Path)):
        listing = look_into(source)
        paths, notes = listing.clips, listing.notes
    else:
        paths = [Path(path) for path in source]
    sources = [FileSource(path) for path in paths]
    return clips_from_sources(sources, prompt, settings, progress, notes)


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
    bucket: bool = False,
) -> ClipSet:
    """Clips from IMAGE batches ``f h w c`` in 0..1 (c is 1, 3 or 4), one clip each.

    ``rates`` are the clips' frames per second where known: ``fps`` has no effect without. For the
    settings see ``ClipSettings``, for ``prompts`` ``clips_from_sources``. Raises ClipError for
    batches of another shape or with NaN, for counts that do not agree, and for clips that are too
    short.
    """
    settings = ClipSettings(
        frames, width, height, fps, stride, flip, short, fit, max_frames, bucket
    )
    if rates is not None and len(rates) != len(images):
        raise ClipError(
            f"{len(rates)} frame rates came for {_count(images)}. Give one for each clip."
        )
    return clips_from_sources(image_sources(images, rates), prompts, settings)


def image_sources(
    images: Sequence[Tensor], rates: Sequence[float] | None = None
) -> list[BatchSource]:
    """One clip for each IMAGE batch ``f h w c``. A list of single images, as the host's dataset
    loader gives, is one clip: a single image holds no motion."""
    if len(images) > 1 and all(batch.ndim == 4 and len(batch) == 1 for batch in images):
        return [BatchSource("clip 1", images, rates[0] if rates else None)]
    return [
        BatchSource(f"clip {number}", [batch], rates[number - 1] if rates else None)
        for number, batch in enumerate(images, start=1)
    ]


def clips_from_sources(
    sources: Sequence[ClipSource],
    prompts: str | Sequence[str],
    settings: ClipSettings,
    progress: Callable[[int, int], None] | None = None,
    notes: Sequence[str] = (),
) -> ClipSet:
    """Read clips wherever they come from.

    One prompt is the motion of all clips, and a text file beside a clip goes before it (see
    ``captions.find_caption``); several are the captions of the clips, one for each.

    Every clip is decoded once, frame by frame, up to the cap: what cannot be read, is too short or
    jumps is met now and not in the middle of a training. ``progress`` is called with (done, total)
    before each clip, now and then while it is read, and at the end; what it raises ends the
    reading. ``notes`` are warnings of how the clips were found. Raises ClipError.
    """
    clips = ClipSet([], settings, list(notes))
    tell = progress or (lambda done, total: None)
    total, captions = len(sources), _captions(sources, prompts)
    for done, (source, caption) in enumerate(zip(sources, captions, strict=True)):
        tell(done, total)
        clip = _look_through(source, caption, clips, partial(tell, done, total))
        if long_enough := _long_enough(clip, clips):
            clips.sources.append(long_enough)
    tell(total, total)
    if not clips.sources:
        raise ClipError(
            f"No clip is left to learn from: of {total} none has the {settings.span} frames that a "
            "window needs. Give longer clips, fewer frames or a smaller stride."
        )
    names = [clip.info.name for clip in clips.sources]
    movements = [clip.movement for clip in clips.sources]
    clips.warnings += [
        *_caption_warnings(sources, captions),
        *_side_warnings(clips),
        *_crop_warnings(clips),
        *_rate_warnings(clips),
        *movement_hints(names, movements),
    ]
    return clips


def _captions(sources: Sequence[ClipSource], prompts: str | Sequence[str]) -> list[Caption]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(sources) == 1 and isinstance(only := sources[0], BatchSource):
        if len(texts) == len(only.images):  # single images, each perhaps with its own caption
            texts = [next(filter(str.strip, texts), "")]
    if len(texts) == 1:
        return [
            find_caption(source.path, texts[0]) if source.path else given_caption(texts[0])
            for source in sources
        ]
    if len(texts) != len(sources):
        raise ClipError(
            f"{len(texts)} captions came for {_count(sources)}. Give one for each clip, or one for "
            "all."
        )
    return [given_caption(text, source.path) for text, source in zip(texts, sources, strict=True)]


def _look_through(
    source: ClipSource, caption: Caption, clips: ClipSet, pulse: Callable[[], None]
) -> Clip:
    """Decode a clip once: count its frames at the asked rate, up to the cap, see how it moves.

    ``pulse`` is called now and then, so that a cancel need not wait for the end of a film.
    """
    settings, tally, look = clips.settings, Tally(), _Look(clips.settings)
    if isinstance(source, BatchSource) and len(source.images) > 1:
        clips.warnings.append(
            f"{len(source.images)} single images came: they are taken as the frames of one clip, "
            "in the order in which they came. Look at the contact sheet whether it is right."
        )
    with contextlib.closing(source.frames(pulse)) as frames:
        watched = tally.watch(frames)
        for frame in resample(watched, settings.fps) if settings.fps else watched:
            if look.count == settings.most:
                look.capped = True
                break
            with reading(source.path or source.name):
                look.see(frame)
            if look.count % PULSE == 0:
                pulse()
    total = tally.count if tally.ended else max(source.count(pulse), tally.count)
    where, said = (caption.text, caption.source), clips.warnings
    info = ClipInfo(source.name, source.path, total, tally.rate, *look.found, *where)
    said += [f"'{info.name}' {note}" for note in look.notes]
    if look.capped:
        said.append(
            f"'{info.name}' is long ({total} frames): only the first {look.count} are used. Cut it "
            "to the motion."
        )
    return Clip(source, info, look.size, look.count, look.count, look.movement())


class _Look:
    """What is seen of a clip on the way through it.

    ``found`` is the size (width, height) of the first picture, ``size`` that which it is fitted to.
    """

    def __init__(self, settings: ClipSettings) -> None:
        self._settings = settings
        self.found = self.size = (0, 0)
        self.count, self.capped = 0, False
        self.notes: list[str] = []
        self._meter: MotionMeter | None = None

    def see(self, frame: SourceFrame) -> None:
        """The next frame."""
        picture = frame.load()
        if self._meter is None:
            self.found = picture.shape[1], picture.shape[0]
            self.size = self._settings.size_for(*self.found)
            self._meter = MotionMeter(*self.size, self._settings.stride)
        self._meter.see(fit_small(picture[None], *look_size(*self.size), self._settings.fit)[0])
        self.count, self.notes = self.count + 1, frame.told.notes

    def movement(self) -> Movement:
        """What moved; there has to have been a frame."""
        if self._meter is None:
            raise ClipError("A clip without frames cannot be used. Leave it out.")
        return self._meter.result()


def _long_enough(clip: Clip, clips: ClipSet) -> Clip | None:
    """The clip, made longer or refused by the rule for short clips; None: left out."""
    settings, warnings = clips.settings, clips.warnings
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
    return [
        f"Clips are mirrored at random, but the caption of {_first_of(sided)} names a side or a "
        f"turn: '{sided[0].caption}'. Switch the flip off."
    ]


def _caption_warnings(sources: Sequence[ClipSource], captions: list[Caption]) -> list[str]:
    """One line for each trouble, however many clips have it."""
    found: dict[str, list[ClipSource]] = {}
    for source, caption in zip(sources, captions, strict=True):
        if caption.warning:
            found.setdefault(caption.warning, []).append(source)
    return [f"{_first_of(clips)}: {warning}" for warning, clips in found.items()]


def _crop_warnings(clips: ClipSet) -> list[str]:
    if clips.settings.fit != "crop":
        return []
    shares = [share_kept((c.info.width, c.info.height), c.size) for c in clips.sources]
    cut = sorted((n for n in range(len(clips)) if shares[n] < LEAST_KEPT), key=shares.__getitem__)
    if not cut:
        return []
    info, (width, height) = clips.infos[cut[0]], clips.size(cut[0])
    advice = "choose another size" if clips.settings.bucket else "switch bucket on"
    return [
        f"{_first_of([clips.infos[n] for n in cut])}: cropping {info.width} x {info.height} to "
        f"{width} x {height} leaves {shares[cut[0]]:.0%} of the picture. If the motion is cut "
        f"off, {advice} or set fit to pad."
    ]


def _rate_warnings(clips: ClipSet) -> list[str]:
    """Clips of several rates show one motion at several paces."""
    timed = [info for info in clips.infos if info.fps]
    if clips.settings.fps and timed and len(timed) < len(clips):
        untimed = [info for info in clips.infos if not info.fps]
        return [
            f"{_first_of(untimed)} tell no frame rate: they are taken as they are, and not brought "
            f"to {clips.settings.fps:g} fps."
        ]
    if not timed or same_rate(clips.rates):
        return []
    slow, fast = (pick(timed, key=lambda info: info.fps or 0.0) for pick in (min, max))
    return [
        f"The clips have different frame rates, from {slow.fps:.4g} fps ('{slow.name}') to "
        f"{fast.fps:.4g} fps ('{fast.name}'): one motion has several paces in them, and the motion "
        f"file tells no rate. Set fps, to {slow.fps:.4g} for one, to bring all to one."
    ]


def _first_of(clips: Sequence[ClipSource | ClipInfo]) -> str:
    """A clip's name, and how many there are besides."""
    return f"'{clips[0].name}'" + (f" and {len(clips) - 1} more" if len(clips) > 1 else "")


def _count(clips: Sequence[object]) -> str:
    return f"{len(clips)} clip" + ("" if len(clips) == 1 else "s")
