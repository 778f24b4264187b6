"""Draw the workflows' thumbnails: `python -m scripts.assets.thumbnails [NAME ...]`.

Each workflow runs on the toy base (scripts/workflows/toy.py); its thumbnail shows the video that
it made. This takes some minutes.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scripts.demo import node_of
from scripts.server.run import RunResult
from scripts.server.server import ComfyServer
from scripts.workflows import FOLDER, ORIGINALS, TITLES, load_api
from scripts.workflows.convert import Prompt
from scripts.workflows.toy import on_toy

Film = NDArray[np.uint8]  # (f, h, w, 3)
SIDE, GAP, TILE = 532, 4, 128
_PAPER, _INK = (24, 24, 28), (225, 225, 225)
_TEXT_LINES = 3
# The toy workflow's own thumbnail is made of the demo's pictures.
NAMES = [name for name in ORIGINALS if not name.startswith("lamp_toy")]
# The rates of the recipe `fast`, constant: the stages of a training go on from each other.
_STAGES = {
    "learning_rate": 2e-3,
    "conv_rate": 1.0,
    "attention_rate": 1.0,
    "query_rate": 1.0,
    "reference_width": 64,
    "rate_schedule": "constant",
    "warmup": 0,
    "weight_decay": 0.01,
    "ema": 0.0,
    "min_snr": 1.0,
    "groupnorm": "pooled",
    "query_decay": "change",
}


@dataclass(frozen=True)
class Run:
    """A finished workflow and where its files are."""

    server: ComfyServer
    prompt: Prompt
    result: RunResult

    def film(self) -> Film:
        (file,) = self.result.files(node_of(self.prompt, "SaveVideo"))
        with av.open(io.BytesIO(self.server.view(file))) as film:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])

    def picture(self, kind: str) -> Image.Image:
        file = self.result.files(node_of(self.prompt, kind))[0]
        return Image.open(io.BytesIO(self.server.view(file))).convert("RGB")

    def text(self, kind: str) -> str:
        return self.result.outputs[node_of(self.prompt, kind)]["text"][0]


def tiles(frames: Sequence[Any]) -> Image.Image:
    """Four in a row, as many rows as it takes."""
    page = Image.new("RGB", (SIDE, GAP + -(-len(frames) // 4) * (TILE + GAP)), _PAPER)
    for number, frame in enumerate(frames):
        picture = Image.fromarray(frame).resize((TILE, TILE), Image.Resampling.NEAREST)
        place = GAP + number % 4 * (TILE + GAP), GAP + number // 4 * (TILE + GAP)
        page.paste(picture, place)
    return page


def spread(film: Film, count: int) -> list[Any]:
    """`count` frames of a film, from the first to the last one."""
    return [film[number] for number in np.linspace(0, len(film) - 1, count).round().astype(int)]


def stacked(*parts: Image.Image) -> Image.Image:
    """A square page, parts from top to bottom."""
    page, top = Image.new("RGB", (SIDE, SIDE), _PAPER), 0
    for part in parts:
        page.paste(part, ((SIDE - part.width) // 2, top))
        top += part.height
    return page


def fitted(picture: Image.Image, height: int) -> Image.Image:
    scale = min((SIDE - 2 * GAP) / picture.width, height / picture.height)
    size = round(picture.width * scale), round(picture.height * scale)
    return picture.resize(size, Image.Resampling.LANCZOS)


def written(lines: Sequence[str], height: int) -> Image.Image:
    page = Image.new("RGB", (SIDE, height), _PAPER)
    font = ImageFont.load_default(size=22)
    ImageDraw.Draw(page).multiline_text((16, 24), "\n".join(lines), _INK, font, spacing=12)
    return page


def thumbnail(name: str, runs: Sequence[Run]) -> Image.Image:
    """What a workflow gave, on a page of 4 x 4 tiles."""
    first = runs[0]
    if name == "lamp_train_motion":
        sheet = fitted(first.picture("LAMP_TrainingClips"), 330)
        return stacked(sheet, fitted(first.picture("LAMP_Trainer"), SIDE - sheet.height))
    film = first.film()
    side = film.shape[1]
    if name == "lamp_train_and_compare":
        stages = [film[:, :, start : start + side] for start in range(0, film.shape[2], side + 8)]
        rows = [tiles(spread(stage, 4)) for stage in stages]
        steps = [
            n["inputs"]["steps"] for n in first.prompt.values() if "Trainer" in n["class_type"]
        ]
        words = written([f"after {', '.join(map(str, steps))} steps"], SIDE - 3 * rows[0].height)
        return stacked(*rows, words)
    if name == "lamp_evaluate":
        both = [*spread(film[:, :, :side], 4), *spread(film[:, :, -side:], 4)]
        lines = first.text("LAMP_VideoMetrics").splitlines()[:_TEXT_LINES]
        return stacked(tiles(both), written(lines, SIDE // 2))
    if len(film) > 8:
        return stacked(tiles(spread(film, 16)))
    return stacked(tiles([*film, *runs[1].film()]))


def needs_two(name: str) -> bool:
    """Whether the page shows two objects."""
    alone = ("long", "extend", "train", "compare", "evaluate")
    return not any(word in name for word in alone)


def prompt_of(name: str, number: int) -> Prompt:
    """The workflow on the toy, with one of its unseen objects."""
    prompt = on_toy(load_api(name))
    trainers = [node["inputs"] for node in prompt.values() if node["class_type"] == "LAMP_Trainer"]
    if len(trainers) > 1:
        prompt["recipe"] = {"class_type": "LAMP_TrainingRecipe", "inputs": _STAGES}
        for inputs in trainers:
            inputs["own_recipe"] = ["recipe", 0]
    for node in prompt.values():
        if node["class_type"] == "LAMP_ToyObject":
            node["inputs"]["number"] = number
    return prompt


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.assets.thumbnails", description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    args = parser.parse_args()
    with ComfyServer() as server:
        for name in args.names:
            runs = []
            for number in (0, 3) if needs_two(name) else (0,):
                prompt = prompt_of(name, number)
                runs.append(Run(server, prompt, server.queue(prompt, timeout=3600).check()))
            page = thumbnail(name, runs)
            for title in (TITLES[name], TITLES.get(f"{name}_toy")):
                if title is not None:
                    page.save(FOLDER / f"{title}.jpg", quality=88)
            print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
