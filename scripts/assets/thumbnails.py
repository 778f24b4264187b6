"""Draw the workflows' thumbnails: `python -m scripts.assets.thumbnails [NAME ...]`.

Each workflow runs on the toy base (scripts/workflows/toy.py). Its thumbnail shows what goes in and
what came out. This takes some minutes.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lamp.toy.worlds import evaluation_cases, training_clips
from scripts.demo import node_of
from scripts.server.run import RunResult
from scripts.server.server import ComfyServer
from scripts.workflows import FOLDER, ORIGINALS, TITLES, load_api
from scripts.workflows.convert import Prompt
from scripts.workflows.toy import CAPTION, KIND, on_toy

Frames = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]  # h w 3 each
SIDE, GAP, LABEL = 532, 4, 34
_PAPER, _INK, _QUIET = (24, 24, 28), (235, 235, 235), (120, 120, 128)
_BLUE, _GREEN, _ORANGE = _COLOURS = (90, 150, 200), (110, 175, 110), (215, 130, 70)
# Which of the toy's unseen objects a thumbnail shows.
_OBJECTS = {
    "lamp_animate_image": 10,
    "lamp_extend_video": 0,
    "lamp_long_video_windows": 8,
    "lamp_few_steps_lora": 12,
    "lamp_edit_video_sdxl": 14,
    "lamp_custom_sampling": 17,
    "lamp_train_and_compare": 2,
    "lamp_evaluate": 20,
}
# The rates of the recipe `fast`, but constant: each stage of a training continues the one before.
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


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished workflow and where its files are."""

    server: ComfyServer
    prompt: Prompt
    result: RunResult

    def film(self) -> NDArray[np.uint8]:
        (file,) = self.result.files(node_of(self.prompt, "SaveVideo"))
        with av.open(io.BytesIO(self.server.view(file))) as film:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])

    def picture(self, kind: str) -> NDArray[np.uint8]:
        file = self.result.files(node_of(self.prompt, kind))[0]
        return np.asarray(Image.open(io.BytesIO(self.server.view(file))).convert("RGB"))

    def text(self, kind: str) -> str:
        return self.result.outputs[node_of(self.prompt, kind)]["text"][0]


def prompt_of(name: str) -> Prompt:
    """The workflow on the toy, with its own object."""
    prompt = load_api(name)
    if name.startswith("lamp_toy"):  # its video shows the truth as well
        video = prompt[node_of(prompt, "CreateVideo")]["inputs"]
        video["images"] = [node_of(prompt, "VAEDecode"), 0]
        return prompt
    prompt = on_toy(prompt)
    trainers = [node["inputs"] for node in prompt.values() if node["class_type"] == "LAMP_Trainer"]
    for number, inputs in enumerate(trainers, start=1):
        inputs["steps"] = 100 * number
        if len(trainers) > 1:
            prompt["recipe"] = {"class_type": "LAMP_TrainingRecipe", "inputs": _STAGES}
            inputs["own_recipe"] = ["recipe", 0]
    for node in prompt.values():
        if node["class_type"] == "LAMP_ToyObject":
            node["inputs"]["number"] = _OBJECTS[name]
    return prompt


# --- drawing -------------------------------------------------------------------------------------


class Page:
    """A square picture that is filled from top to bottom."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIDE, SIDE), _PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.top = 0

    def label(self, text: str, colour: tuple[int, int, int] = _INK) -> None:
        font = ImageFont.load_default(size=22)
        self.draw.text((10, self.top + 5), text, colour, font)
        self.top += LABEL

    def row(self, frames: Frames, colours: Sequence[tuple[int, int, int]] = ()) -> None:
        """Frames side by side, each with a coloured line below if there are colours."""
        side = (SIDE - GAP) // len(frames) - GAP
        for number, frame in enumerate(frames):
            left = GAP + number * (side + GAP)
            self.image.paste(scaled(frame, side), (left, self.top))
            if colours:
                bottom = self.top + side
                self.draw.rectangle((left, bottom, left + side - 1, bottom + 5), colours[number])
        self.top += side + GAP + (6 if colours else 0)

    def paste(self, picture: NDArray[np.uint8], height: int) -> None:
        image = Image.fromarray(picture)
        scale = min((SIDE - 2 * GAP) / image.width, height / image.height)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        self.image.paste(image, ((SIDE - image.width) // 2, self.top))
        self.top += image.height + GAP

    def boxes(self, texts: Sequence[str], colour: tuple[int, int, int]) -> None:
        width = (SIDE - GAP) // len(texts) - GAP
        font = ImageFont.load_default(size=20)
        for number, text in enumerate(texts):
            left = GAP + number * (width + GAP)
            box = (left, self.top, left + width, self.top + 52)
            self.draw.rounded_rectangle(box, 8, None, colour, 3)
            middle = left + width // 2, self.top + 26
            self.draw.text(middle, text, _INK, font, anchor="mm")
            self.draw.line((middle[0], self.top + 53, SIDE // 2, self.top + 100), colour, 3)
        self.top += 104


def tagged(image: Image.Image) -> Image.Image:
    """A copy with a tag in the corner, which tells a toy twin from its original."""
    image = image.copy()
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=24)
    left, top = SIDE - 106, SIDE - 48
    draw.rounded_rectangle((left, top, SIDE - 8, SIDE - 8), 8, _PAPER, _ORANGE, 3)
    draw.text(((left + SIDE - 8) / 2, top + 20), "TOY", _ORANGE, font, anchor="mm")
    return image


def scaled(frame: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST)


def spread(film: Frames, count: int) -> list[NDArray[np.uint8]]:
    """`count` frames of a film, from the first to the last one."""
    return [film[number] for number in np.linspace(0, len(film) - 1, count).round().astype(int)]


# --- the thumbnails ------------------------------------------------------------------------------


def toy_workflow(page: Page, run: Run) -> None:
    page.label("8 clips", _BLUE)
    kind = run.prompt[node_of(run.prompt, "LAMP_ToyClips")]["inputs"]["motion"]
    clips = training_clips(0, kind).frames
    for row in (clips[:4], clips[4:]):
        page.row([clip[7] for clip in row])
    page.label("A new picture, animated", _ORANGE)
    page.row(spread(run.film(), 4))


def animate(page: Page, run: Run) -> None:
    film = run.film()
    page.image.paste(scaled(film[0], 250), (GAP, 141))
    page.draw.polygon([(260, 246), (260, 286), (284, 266)], _ORANGE)
    page.draw.text((GAP, 105), "Picture", _BLUE, ImageFont.load_default(size=22))
    page.draw.text((296, 5), "Video", _ORANGE, ImageFont.load_default(size=22))
    for number, frame in enumerate(spread(film[1:], 6)):
        place = 292 + number % 2 * 120, 40 + number // 2 * 164
        page.image.paste(scaled(frame, 116), place)


def training(page: Page, run: Run) -> None:
    page.label("Your clips", _BLUE)
    page.paste(run.picture("LAMP_TrainingClips"), 250)
    page.label("Training loss", _ORANGE)
    page.paste(run.picture("LAMP_Trainer"), SIDE - page.top - GAP)


def text_to_video(page: Page, run: Run) -> None:
    words = CAPTION.split()
    page.label(f'"{" ".join(words[:5])}', _BLUE)
    page.label(f'{" ".join(words[5:])}"', _BLUE)
    film = run.film()
    page.top += 40
    page.label("Video", _ORANGE)
    for row in (film[:4], film[4:]):
        page.row(row)


def extend(page: Page, run: Run) -> None:
    page.label("First frames", _BLUE)
    film = run.film()
    page.row(spread(film[:8], 4), [_BLUE] * 4)
    page.label("Extended, twice", _ORANGE)
    page.row(spread(film[8:15], 4), [_ORANGE] * 4)
    page.row(spread(film[15:], 4), [_GREEN] * 4)


def windows(page: Page, run: Run) -> None:
    page.label("One long video in windows", _INK)
    film = run.film()
    colours = [_COLOURS[number * 3 // len(film)] for number in range(len(film))]
    for start in range(0, 24, 6):
        page.row(film[start : start + 6], colours[start : start + 6])


def few_steps(page: Page, run: Run) -> None:
    for label, count, colour in (("50 steps", 50, _QUIET), ("8 steps", 8, _ORANGE)):
        page.label(label, colour)
        for number in range(count):
            left = 10 + number * 10.3
            page.draw.rectangle((left, page.top, left + 7, page.top + 34), colour)
        page.top += 52
    page.top += 30
    film = run.film()
    for row in (film[:4], film[4:]):
        page.row(row)


def edit(page: Page, run: Run) -> None:
    case = evaluation_cases(0, "combination", KIND)[_OBJECTS["lamp_edit_video_sdxl"]]
    page.label("Clip", _BLUE)
    page.row(spread(case.frames, 4))
    page.top += 30
    page.label("In a new look", _ORANGE)
    page.row(spread(run.film()[1:], 4))  # frame 1 is another object: the toy has no ControlNet


def custom(page: Page, run: Run) -> None:
    page.top = 30
    page.boxes(("NOISE", "GUIDER", "SAMPLER", "SIGMAS"), _GREEN)
    page.top += 20
    film = run.film()
    for row in (film[:4], film[4:]):
        page.row(row)


def stages(page: Page, run: Run) -> None:
    film = run.film()
    side = film.shape[1]
    for number, colour in enumerate(_COLOURS):
        left = number * (side + 8)
        page.label(f"Stage {number + 1}", colour)
        page.row(spread(film[:, :, left : left + side], 4))


def measures(page: Page, run: Run) -> None:
    film = run.film()
    side = film.shape[1]
    page.row(spread(film[:, :, :side], 4))
    page.row(spread(film[:, :, -side:], 4))
    page.top += 40
    for line, colour in zip(run.text("LAMP_VideoMetrics").splitlines(), _COLOURS, strict=False):
        name, values = line.split(": ", 1)
        page.label(name, colour)
        page.label(", ".join(values.split(", ")[:2]), colour)


DRAW: dict[str, Callable[[Page, Run], None]] = {
    "lamp_toy_train_and_generate": toy_workflow,
    "lamp_animate_image": animate,
    "lamp_train_motion": training,
    "lamp_text_to_video_sdxl": text_to_video,
    "lamp_extend_video": extend,
    "lamp_long_video_windows": windows,
    "lamp_few_steps_lora": few_steps,
    "lamp_edit_video_sdxl": edit,
    "lamp_custom_sampling": custom,
    "lamp_train_and_compare": stages,
    "lamp_evaluate": measures,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.assets.thumbnails", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(ORIGINALS))
    args = parser.parse_args()
    with ComfyServer() as server:
        for name in args.names:
            prompt = prompt_of(name)
            page = Page()
            DRAW[name](page, Run(server, prompt, server.queue(prompt, timeout=3600).check()))
            page.image.save(FOLDER / f"{TITLES[name]}.jpg", quality=88)
            if f"{name}_toy" in TITLES:
                tagged(page.image).save(FOLDER / f"{TITLES[f'{name}_toy']}.jpg", quality=88)
            print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
