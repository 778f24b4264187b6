"""The demo's results: an animation, a video and a contact sheet of true and generated frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lamp.toy.scenes.canvas import SIZE
from lamp.toy.scenes.cases import SceneCase
from lamp.toy.scenes.score import SceneScore, score_video

FPS = 6
ZOOM = 3
VIDEO_ROUNDS = 4  # since eight frames are short
_GAP, _HEAD, _SIDE = 8, 22, 84
_PAPER, _INK, _GOOD, _BAD = (24, 24, 28), (225, 225, 225), (120, 210, 130), (240, 120, 110)


@dataclass(frozen=True)
class Film:
    """One picture: its case, and the generated frames (f, h, w, 3)."""

    case: SceneCase
    frames: NDArray[np.uint8]

    @cached_property
    def score(self) -> SceneScore:
        return score_video(self.frames, self.case)


def write_pictures(films: Sequence[Film], out: Path) -> None:
    """motion.webp, motion.mp4 and contact_sheet.png."""
    frames = animation(films)
    rest = {"append_images": frames[1:], "duration": 1000 // FPS, "loop": 0, "quality": 80}
    frames[0].save(out / "motion.webp", save_all=True, **rest)
    write_video(frames * VIDEO_ROUNDS, out / "motion.mp4")
    contact_sheet(films).save(out / "contact_sheet.png")


def animation(films: Sequence[Film], in_row: int = 4) -> list[Image.Image]:
    """One picture per frame: videos side by side, the true frame above the generated one."""
    side = SIZE * ZOOM
    row = _HEAD + 2 * side + 3 * _GAP
    width = _SIDE + min(len(films), in_row) * (side + _GAP)
    height = -(-len(films) // in_row) * row
    pictures = []
    for index in range(len(films[0].frames)):
        page = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
        draw = ImageDraw.Draw(page)
        for place, film in enumerate(films):
            left = _SIDE + place % in_row * (side + _GAP)
            top = place // in_row * row + _GAP // 2
            title = film.case.caption.split(" near ")[0]
            _write(draw, (left, top), title, _GOOD if film.score.followed else _BAD)
            if place % in_row == 0:
                _label(draw, top + _HEAD, side, _GAP)
            for frames, below in ((film.case.frames, 0), (film.frames, side + _GAP)):
                page.paste(_zoomed(frames[index]), (left, top + _HEAD + below))
        pictures.append(page)
    return pictures


def contact_sheet(films: Sequence[Film], zoom: int = 2) -> Image.Image:
    """A row per picture: true frames, with the generated ones below them."""
    side, count = SIZE * zoom, len(films[0].frames)
    row = _HEAD + 2 * side + 2 * _GAP
    page = Image.new("RGB", (_SIDE + count * (side + 4) + _GAP, len(films) * row + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, film in enumerate(films):
        top, found = number * row + _GAP, film.score
        verdict = "followed" if found.followed else "not followed"
        text = f"{film.case.caption}: {verdict}, motion {found.motion:.2f}"
        _write(draw, (_SIDE, top), text, _GOOD if found.followed else _BAD)
        _label(draw, top + _HEAD, side, 4)
        for frames, below in ((film.case.frames, 0), (film.frames, side + 4)):
            for index, frame in enumerate(frames):
                place = (_SIDE + index * (side + 4), top + _HEAD + below)
                page.paste(_zoomed(frame, zoom), place)
    return page


def write_video(frames: Sequence[Image.Image], path: Path) -> None:
    """H.264 in an mp4, which browsers play."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=Fraction(FPS))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "16"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _zoomed(frame: NDArray[np.uint8], zoom: int = ZOOM) -> Image.Image:
    picture = Image.fromarray(frame)
    size = (picture.width * zoom, picture.height * zoom)
    return picture.resize(size, Image.Resampling.NEAREST)


def _label(draw: ImageDraw.ImageDraw, top: int, side: int, gap: int) -> None:
    for number, text in enumerate(("truth", "generated")):
        _write(draw, (_GAP, top + number * (side + gap) + side // 2 - 8), text)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    colour: tuple[int, int, int] = _INK,
) -> None:
    draw.text(place, text, fill=colour, font=ImageFont.load_default(size=14))
