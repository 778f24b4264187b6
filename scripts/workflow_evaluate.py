"""The bundled workflow that measures videos (paper sec. 4.2)."""

from __future__ import annotations

from scripts.workflow_format import Graph, Group, Node, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    HUB,
    MOTIONS,
    ORANGE,
    PICTURE_TABLE,
    TITLES,
    decode,
    encode,
    first_frame,
    load_motion,
    picture,
    read_me,
    sample,
    sd1,
    small,
    try_first,
    video,
)

CLIP = "clip-vit-large-patch14.safetensors"
_CLIP_URL = f"{HUB}/openai/clip-vit-large-patch14/resolve/main/model.safetensors"

_EVALUATE = f"""## Measure a motion

Two videos of the same picture with different noise, measured as in the paper: text alignment, \
frame consistency, diversity; and by optical flow how much they move and how still the ground stays.

{PICTURE_TABLE}
| `{CLIP}`, image encoder | `models/clip_vision` |
| the same file, text encoder | `models/text_encoders` |

CLIP is [openai/clip-vit-large-patch14]({HUB}/openai/clip-vit-large-patch14): its file is called \
`model.safetensors`; put it into both folders under the name above.

{try_first("lamp_evaluate")}

{MOTIONS}

1. Choose the files and your picture, describe what happens in the words of the motion.
2. Run, and read the report on *LAMP Video Metrics*.

Without CLIP: disconnect **clip_vision** and **clip**. Motion and background are measured \
all the same.
"""

_READ = """**Compare** one setting at a time: another strength, another motion file, AdaIN off, \
with the seeds as they are. Numbers of other programs are comparable only with the same CLIP model.

**A still video** has a perfect frame consistency: look at *motion*, too.

**Optical flow** needs OpenCV in ComfyUI's Python; without it the report says so."""


def evaluate() -> Graph:
    """Two seeds of one picture, measured."""
    clip, prompt = Out("sd1", "CLIP"), Out("prompt", "STRING")
    both = {"image1": Out("frames", "IMAGE"), "image2": Out("other_frames", "IMAGE")}
    measured = {
        "images": Out("both", "IMAGE"),
        "prompt": prompt,
        "frames": 16,
        "clip_vision": Out("clip_vision", "CLIP_VISION"),
        "clip": Out("clip", "CLIP"),
    }
    beside = {**both, "spacing_width": 8}
    written = {"value": "a brown horse runs on the grass"}
    title = "Prompt, for sampling and measuring"
    start = [
        picture(),
        sd1(),
        load_motion(),
    ]
    first = [
        Node("prompt", "PrimitiveStringMultiline", written, title, size=(275, 92)),
        encode("positive", prompt, clip, "Prompt"),
        encode("negative", "", clip, "Negative"),
        first_frame(Out("image", "IMAGE")),
        _sampled("sample", "First video", 0),
        decode("frames", Out("sample", "latent"), Out("sd1", "VAE")),
    ]
    second = [
        _sampled("other", "Second video", 1),
        decode("other_frames", Out("other", "latent"), Out("sd1", "VAE")),
        small("both", "ImageBatch", both),
        _clip_file("clip_vision", "CLIPVisionLoader", "clip_vision"),
        _clip_file("clip", "CLIPLoader", "text_encoders"),
    ]
    looked = [
        Node("measured", "LAMP_VideoMetrics", measured, size=(275, 246)),
        small("beside", "ImageStitch", beside),
        *video(Out("beside", "IMAGE"), 8.0, "video/LAMP_measured"),
    ]
    return Graph(
        "lamp_evaluate",
        [
            read_me((_EVALUATE, 625), (_READ, 215)),
            [Group("Picture, SD 1.x and motion", BLUE, start)],
            [Group("First video", GREEN, first)],
            [Group("Second video, and CLIP", GREEN, second)],
            [Group("Measures", ORANGE, looked)],
        ],
        TITLES["lamp_evaluate"],
    )


def _sampled(key: str, title: str, seed: int) -> Node:
    return sample(Out("motion", "model"), after="fixed", key=key, title=title, seed=seed)


def _clip_file(key: str, kind: str, folder: str) -> Node:
    models = [{"name": CLIP, "url": _CLIP_URL, "directory": folder}]
    return Node(key, kind, {"clip_name": CLIP}, size=(275, 78), models=models)
