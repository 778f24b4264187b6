"""Load training clips: read, resize, caption and check them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ClipError
from .captions import Caption, find_caption, given_caption, names_a_direction, names_a_side
from .clip_set import Clip, ClipSet, same_rate
from .decoding.choose import Tally
from .decoding.reader import SourceFrame, reading
from .images import fit_small
from .listing import find_clips
from .movement import MotionMeter, Movement, look_size, movement_hints
from .settings import ClipSettings, share_kept
from .sources import BatchSource, ClipSource, FileSource
from .video import ClipInfo, resample

PULSE = 60
"""Frames between checks for cancellation."""
MIN_KEPT = 0.7
"""Share of a picture below which cropping leads to a warning."""
MOST_TURNED = 30.0
"""Degrees by which a motion with a direction in its caption can be turned without a warning."""
_REPEATING = 1.1  # a rate of windows above this multiple of a clip's own repeats frames


def load_clips(
    source: str | Path | Sequence[str | Path],
    prompt: str | Sequence[str] = "",
    frames: int = 16,
    width: int = 512,
    height: int = 320,
    *,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> ClipSet:
    """Read the clips of a folder, or a list of files, with their captions.

    Args:
        prompt, progress: see `clips_from_sources`.
        settings: further fields of `ClipSettings`.

    Raises:
        ClipError: there is no clip, or one cannot be read or is too short.
    """
    chosen = ClipSettings(frames, width, height, **settings)
    notes: list[str] = []
    if isinstance(source, (str, Path)):
        listing = find_clips(source)
        paths, notes = listing.clips, listing.notes
    else:
        paths = [Path(path) for path in source]
    sources = [FileSource(path) for path in paths]
    return clips_from_sources(sources, prompt, chosen, progress, notes)


def clips_from_images(
    images: Sequence[Tensor],
    prompts: str | Sequence[str],
    frames: int = 16,
    width: int = 512,
    height: int = 320,
    *,
    rates: Sequence[float] | None = None,
    **settings: Any,
) -> ClipSet:
    """Clips from IMAGE batches `f h w c` in 0..1 (c is 1, 3 or 4), one clip each.

    Args:
        prompts: see `clips_from_sources`.
        rates: frames per second of each clip, where known; without them `fps` has no effect.
        settings: further fields of `ClipSettings`.

    Raises:
        ClipError: a batch has another shape or NaN, counts differ, or a clip is too short.
    """
    chosen = ClipSettings(frames, width, height, **settings)
    if rates is not None and len(rates) != len(images):
        raise ClipError(f"There are {len(rates)} frame rates for {_count(images)}. Give one each.")
    return clips_from_sources(image_sources(images, rates), prompts, chosen)


def image_sources(
    images: Sequence[Tensor], rates: Sequence[float] | None = None
) -> list[BatchSource]:
    """One clip per IMAGE batch ``f h w c``. Several single images, as from ComfyUI's dataset
    loader, are the frames of one clip."""
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
    """Read clips from any kind of source.

    Every clip is decoded once, up to the cap, so that unreadable files, short clips and cuts are
    found now and not in the middle of a training.

    Args:
        prompts: one prompt for all clips, which a caption file beside a clip overrides (see
            `captions.find_caption`), or one caption per clip.
        progress: called with (done, total) before each clip, regularly while one is read, and at
            the end. An exception from it cancels.
        notes: warnings from the search for clips.

    Raises:
        ClipError: a clip cannot be read or is too short, or counts differ.
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
            f"No clip is left to train on: of {total}, none has the {settings.span} frames that a "
            "window needs. Use longer clips, fewer frames or a smaller stride."
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
            f"There are {len(texts)} captions for {_count(sources)}. Give one per clip, or one for "
            "all."
        )
    return [given_caption(text, source.path) for text, source in zip(texts, sources, strict=True)]


def _look_through(
    source: ClipSource, caption: Caption, clips: ClipSet, pulse: Callable[[], None]
) -> Clip:
    """Decode a clip once, up to the cap: count its frames at the chosen rate, measure its motion.

    ``pulse`` is called regularly, so that a cancel need not wait for the end of a film.
    """
    settings, tally, look = clips.settings, Tally(), _Look(clips.settings)
    if isinstance(source, BatchSource) and len(source.images) > 1:
        clips.warnings.append(
            f"{len(source.images)} single images are used as the frames of one clip, in the given "
            "order. Check the order in the contact sheet."
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
    where, warnings = (caption.text, caption.source), clips.warnings
    info = ClipInfo(source.name, source.path, total, tally.rate, *look.found, *where)
    warnings += [f"'{info.name}' {note}" for note in look.notes]
    if look.capped:
        warnings.append(
            f"'{info.name}' is long ({total} frames): only the first {look.count} are used. Cut it "
            "to the part with the motion."
        )
    return Clip(source, info, look.size, look.count, look.count, look.movement())


class _Look:
    """Collects facts about a clip while it is decoded.

    ``found`` is the size (width, height) of the first picture, ``size`` the one it is resized to.
    """

    def __init__(self, settings: ClipSettings) -> None:
        self._settings = settings
        self.found = self.size = (0, 0)
        self.count, self.capped = 0, False
        self.notes: list[str] = []
        self._meter: MotionMeter | None = None

    def see(self, frame: SourceFrame) -> None:
        """Take in the next frame."""
        picture = frame.load()
        if self._meter is None:
            self.found = picture.shape[1], picture.shape[0]
            self.size = self._settings.size_for(*self.found)
            self._meter = MotionMeter(*self.size, self._settings.stride)
        self._meter.see(fit_small(picture[None], *look_size(*self.size), self._settings.fit)[0])
        self.count, self.notes = self.count + 1, frame.facts.notes

    def movement(self) -> Movement:
        """What moved. Raises ClipError if there was no frame."""
        if self._meter is None:
            raise ClipError("A clip without frames cannot be used. Remove it.")
        return self._meter.result()


def _long_enough(clip: Clip, clips: ClipSet) -> Clip | None:
    """The clip, extended or refused by the rule for short clips; None if it is left out."""
    settings, warnings = clips.settings, clips.warnings
    have, need = clip.once, settings.span
    if have >= need:
        return clip
    at = f" at {settings.fps:g} fps" if settings.fps and clip.info.fps else ""
    what = f"'{clip.info.name}' has {have} frames{at}, a window needs {need}"
    if settings.short == "error":
        raise ClipError(
            f"{what} ({settings.frames} frames, stride {settings.stride}). Use a longer clip, "
            "fewer frames or a smaller stride, or skip or loop short clips."
        )
    if settings.short == "skip":
        warnings.append(f"{what}. It is left out.")
        return None
    warnings.append(f"{what}. It is looped, which shows as a jump.")
    return replace(clip, length=need)


def _side_warnings(clips: ClipSet) -> list[str]:
    settings, warnings = clips.settings, []
    sided = [info for info in clips.infos if names_a_side(info.caption)]
    if settings.flip and sided:
        warnings.append(
            f"Clips are mirrored at random, but the caption of {_first_of(sided)} names a side or "
            f"a turn: '{sided[0].caption}'. Turn flip off."
        )
    directed = [info for info in clips.infos if names_a_direction(info.caption)]
    if settings.copies and settings.turn > MOST_TURNED and directed:
        warnings.append(
            f"Copies are turned by up to {settings.turn:g} degrees, but the caption of "
            f"{_first_of(directed)} names a direction: '{directed[0].caption}'. Set turn to "
            f"{MOST_TURNED:g} or less."
        )
    return warnings


def _caption_warnings(sources: Sequence[ClipSource], captions: list[Caption]) -> list[str]:
    """One line per problem, however many clips have it."""
    found: dict[str, list[ClipSource]] = {}
    for source, caption in zip(sources, captions, strict=True):
        if caption.warning:
            found.setdefault(caption.warning, []).append(source)
    return [f"{_first_of(clips)}: {warning}" for warning, clips in found.items()]


def _crop_warnings(clips: ClipSet) -> list[str]:
    if clips.settings.fit != "crop":
        return []
    shares = [share_kept((c.info.width, c.info.height), c.size) for c in clips.sources]
    cut = sorted((n for n in range(len(clips)) if shares[n] < MIN_KEPT), key=shares.__getitem__)
    if not cut:
        return []
    info, (width, height) = clips.infos[cut[0]], clips.size(cut[0])
    advice = "choose another size" if clips.settings.bucket else "turn bucket on"
    return [
        f"{_first_of([clips.infos[n] for n in cut])}: cropping {info.width} x {info.height} to "
        f"{width} x {height} leaves {shares[cut[0]]:.0%} of the picture. If the motion is cut "
        f"off, {advice} or set fit to pad."
    ]


def _rate_warnings(clips: ClipSet) -> list[str]:
    """Clips of different rates show one motion at different speeds; frames that are repeated to
    reach a higher rate show stutter."""
    timed = [info for info in clips.infos if info.fps]
    untimed = [info for info in clips.infos if not info.fps]
    asked, stride, warnings = clips.settings.fps, clips.settings.stride, []
    if asked and untimed:
        warnings.append(
            f"The frame rate of {_first_of(untimed)} is unknown: not resampled to {asked:g} fps."
        )
    most = (asked or 0.0) / (_REPEATING * stride)
    if slower := [info for info in timed if info.fps and info.fps < most]:
        least = min(info.fps or 0.0 for info in slower) * stride
        warnings.append(
            f"fps is {asked:g}, but the rate of {_first_of(slower)} is {slower[0].fps:.4g}: frames "
            f"are repeated, and the motion would learn the stutter. Set fps to {least:.4g}."
        )
    if asked or not timed or same_rate(clips.rates):
        return warnings
    slow, fast = (pick(timed, key=lambda info: info.fps or 0.0) for pick in (min, max))
    return [
        f"The clips have different frame rates, from {slow.fps:.4g} fps ('{slow.name}') to "
        f"{fast.fps:.4g} fps ('{fast.name}'), so the same motion has different speeds in them, and "
        f"the motion file states no rate. Set fps, for example to {slow.fps:.4g}."
    ]


def _first_of(clips: Sequence[ClipSource | ClipInfo]) -> str:
    """The first clip's name, and the number of others."""
    return f"'{clips[0].name}'" + (f" and {len(clips) - 1} more" if len(clips) > 1 else "")


def _count(clips: Sequence[object]) -> str:
    return f"{len(clips)} clip" + ("" if len(clips) == 1 else "s")
