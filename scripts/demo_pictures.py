"""The demo's pictures: an animation, a video and a contact sheet of truth and result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lamp.toy import score, world
from lamp.toy.cases import Case

FPS = 6
ZOOM = 4
VIDEO_ROUNDS = 4  # eight frames are over in a moment
_GAP, _HEAD, _SIDE = 8, 22, 84
_PAPER, _INK, _GOOD, _BAD = (24, 24, 28), (225, 225, 225), (120, 210, 130), (240, 120, 110)


@dataclass(frozen=True)
class Film:
    """One object: the truth, and the frames (f, h, w, 3) that the model gave."""

    case: Case
    frames: NDArray[np.uint8]

    @property
    def score(self) -> score.Score:
        return score.score_clip(self.frames, self.case)

    @property
    def title(self) -> str:
        """The object without its ground."""
        return self.case.caption.split(" on ")[0]


def write_pictures(films: Sequence[Film], out: Path) -> None:
    """motion.webp, motion.mp4 and contact_sheet.png."""
    frames = animation(films)
    length = 1000 // FPS
    frames[0].save(
        out / "motion.webp",
        save_all=True,
        append_images=frames[1:],
        duration=length,
        loop=0,
        lossless=True,
    )
    write_video(frames * VIDEO_ROUNDS, out / "motion.mp4")
    contact_sheet(films).save(out / "contact_sheet.png")


def animation(films: Sequence[Film], in_row: int = 4) -> list[Image.Image]:
    """One picture a frame: objects side by side, the truth above, the result below."""
    side = world.SIZE * ZOOM
    rows = -(-len(films) // in_row)
    width = _SIDE + min(len(films), in_row) * (side + _GAP)
    height = rows * (_HEAD + 2 * side + 3 * _GAP)
    pictures = []
    for index in range(len(films[0].frames)):
        page = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
        draw = ImageDraw.Draw(page)
        for place, film in enumerate(films):
            left = _SIDE + place % in_row * (side + _GAP)
            top = place // in_row * (_HEAD + 2 * side + 3 * _GAP) + _GAP // 2
            if place % in_row == 0:
                _write(draw, (_GAP, top + _HEAD + side // 2 - 8), "truth")
                _write(draw, (_GAP, top + _HEAD + side + _GAP + side // 2 - 8), "generated")
            _write(draw, (left, top), film.title, _GOOD if film.score.followed else _BAD)
            page.paste(_zoomed(film.case.frames[index]), (left, top + _HEAD))
            page.paste(_zoomed(film.frames[index]), (left, top + _HEAD + side + _GAP))
        pictures.append(page)
    return pictures


def contact_sheet(films: Sequence[Film], zoom: int = 3) -> Image.Image:
    """A row for each object: the true frames, the generated ones below them."""
    side, count = world.SIZE * zoom, len(films[0].frames)
    row = _HEAD + 2 * side + 2 * _GAP
    page = Image.new("RGB", (_SIDE + count * (side + 4) + _GAP, len(films) * row + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, film in enumerate(films):
        top = number * row + _GAP
        found = film.score
        verdict = "followed" if found.followed else "not followed"
        text = f"{film.case.caption}: {verdict}, IoU {found.iou:.2f}, path error {found.nrmse:.2f}"
        _write(draw, (_SIDE, top), text, _GOOD if found.followed else _BAD)
        _write(draw, (_GAP, top + _HEAD + side // 2 - 8), "truth")
        _write(draw, (_GAP, top + _HEAD + side + 4 + side // 2 - 8), "generated")
        for index in range(count):
            left = _SIDE + index * (side + 4)
            page.paste(_zoomed(film.case.frames[index], zoom), (left, top + _HEAD))
            page.paste(_zoomed(film.frames[index], zoom), (left, top + _HEAD + side + 4))
    return page


def write_video(frames: Sequence[Image.Image], path: Path) -> None:
    """H.264 in an mp4, as browsers play it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=Fraction(FPS))
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_lossless(frames: NDArray[np.uint8], path: Path) -> None:
    """Frames (f, h, w, 3) as an mp4 that keeps every colour, for programs rather than for eyes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": "0"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _zoomed(frame: NDArray[np.uint8], zoom: int = ZOOM) -> Image.Image:
    picture = Image.fromarray(frame)
    size = (picture.width * zoom, picture.height * zoom)
    return picture.resize(size, Image.Resampling.NEAREST)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    colour: tuple[int, int, int] = _INK,
) -> None:
    draw.text(place, text, fill=colour, font=ImageFont.load_default(size=14))
