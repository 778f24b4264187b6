"""The bundled workflows for real checkpoints, in a few words each."""

from __future__ import annotations

from typing import Any

from scripts.workflow_format import Graph, Group, Node, Note, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    MOTION,
    ORANGE,
    PATIENCE,
    PICTURE_TABLE,
    SD1,
    SDXL,
    TEXT,
    decode,
    draw,
    encode,
    first_frame,
    load_motion,
    matched,
    picture,
    read_me,
    sample,
    sd1,
    sdxl,
    video,
)

_MISTAKE = """**The commonest mistake:** SD-XL's MODEL in *Load LAMP Motion*. A motion is made for \
SD 1.x, so MODEL, CLIP and VAE of the SD 1.x checkpoint belong here. SD-XL only draws frame 1."""

_FAMILY = """**The checkpoint must be SD 1.x.** A motion does not fit SD-XL or other models: their \
MODEL in *Load LAMP Motion* ends in an error. LoRAs for SD 1.x may come before or after it."""


def _animate_groups(image: Out, text: Any, hint: str) -> list[Group]:
    """From a first frame to a saved video with a SD 1.x checkpoint and a motion file."""
    clip = Out("sd1", "CLIP")
    return [
        Group(
            "Motion: SD 1.x and LAMP",
            GREEN,
            [
                [sd1(), load_motion(), Note(hint, (400, 100))],
                [
                    encode("positive", text, clip, "What happens (with the motion's words)"),
                    encode("negative", "", clip, "Negative"),
                    first_frame(image),
                ],
                [
                    sample(Out("motion", "model"), steps=50, cfg=12.5),
                    decode("frames", Out("sample", "latent"), Out("sd1", "VAE")),
                    matched(Out("frames", "IMAGE")),
                ],
            ],
        ),
        Group("Video", ORANGE, [video(Out("matched", "images"), 8.0, "video/LAMP")]),
    ]


_TEXT_TO_VIDEO = f"""## Text to video

SD-XL draws the first frame. A LAMP motion on SD 1.x moves it: 16 frames, 512 x 320.

| File | Folder |
|---|---|
| `{SDXL}` | `models/checkpoints` |
| `{SD1}` (or another SD 1.x checkpoint) | `models/checkpoints` |
| a motion, such as `{MOTION}` | `models/lamp_motion` |

A motion comes from the workflow **lamp_train_motion**, or from somebody who trained one. \
Press **R** after adding files.

1. Choose the three files.
2. Write the prompt. Use the words of the motion: *a horse runs*.
3. Run. The video is saved to `output/video`.

Is the first frame right but the motion weak? Keep the picture (its seed is fixed) and try other \
seeds in *LAMP KSampler*. Does the video fall apart? Set **strength** of *Load LAMP Motion* to 0.7.

{PATIENCE}
"""


def text_to_video() -> Graph:
    """SD-XL draws the first frame, LAMP moves it."""
    clip, prompt = Out("sdxl", "CLIP"), Out("prompt", "STRING")
    still = Group(
        "First frame: SD-XL",
        BLUE,
        [
            [
                sdxl(),
                Node(
                    "prompt",
                    "PrimitiveStringMultiline",
                    {"value": "a white horse runs on the beach, side view, photo"},
                    "Prompt, for both models",
                    size=TEXT,
                ),
            ],
            [
                encode("xl_positive", prompt, clip, "Prompt (SD-XL)"),
                encode("xl_negative", "blurry, deformed, text", clip, "Negative (SD-XL)"),
            ],
            [
                Node("canvas", "EmptyLatentImage", {"width": 1280, "height": 800}),
                draw(Out("xl_positive", "CONDITIONING"), Out("xl_negative", "CONDITIONING")),
            ],
            [
                decode("picture", Out("draw", "LATENT"), Out("sdxl", "VAE")),
                Node(
                    "preview",
                    "PreviewImage",
                    {"images": Out("picture", "IMAGE")},
                    "First frame",
                    size=(400, 320),
                ),
            ],
        ],
    )
    return Graph(
        "lamp_text_to_video_sdxl",
        [
            [read_me(_TEXT_TO_VIDEO, (420, 580)), still],
            _animate_groups(Out("picture", "IMAGE"), prompt, _MISTAKE),
        ],
    )


_ANIMATE = f"""## Animate an image

A LAMP motion moves your picture: 16 frames, 512 x 320. Frame 1 of the video is your picture.

{PICTURE_TABLE}

1. **Choose your picture** in *Load Image*. It should show the start of the motion, from the side \
and in the size that the training clips show.
2. Choose checkpoint and motion. Press **R** after adding files.
3. Describe the picture and what happens, in the words of the motion: *a horse runs*. *LAMP Motion \
Info* shows them.
4. Run. The video is saved to `output/video`.

Hardly any motion? Try other seeds, or **strength** 1.2 in *Load LAMP Motion*. Does the video fall \
apart? **strength** 0.7.

{PATIENCE}
"""


def animate_image() -> Graph:
    """LAMP moves a picture of the user's."""
    start = Group("Picture", BLUE, [[picture()]])
    return Graph(
        "lamp_animate_image",
        [
            [
                read_me(_ANIMATE, (420, 550)),
                start,
                *_animate_groups(Out("image", "IMAGE"), "a brown horse runs on the grass", _FAMILY),
            ]
        ],
    )


_TRAIN = f"""## Train a motion

Learns one motion from 8 to 16 short clips that show it, with different animals, people or things.

1. Put the clips into `input/horse_run` (mp4, mov, webm, mkv, gif, or a folder of pictures for \
each clip), at least 16 frames each. Press **R**, choose the folder.
2. Write the motion in words: *a horse runs*. A text file beside a clip (`clip.mp4`, `clip.txt`) \
is that clip's own caption.
3. Choose a SD 1.x checkpoint: `{SD1}` in `models/checkpoints`. A motion of SD-XL fits SD-XL only, \
and nobody has tried that yet.
4. Select *Report* and press the play button above it: only the clips are read. Are they cut as \
you want them?
5. Run. The node tells the time left. Cancel keeps what was learned so far.

The motion is written to `models/lamp_motion`. Use it in **lamp_text_to_video_sdxl** or \
**lamp_animate_image**, with a prompt in the same words.
"""

_SETTINGS = """## The trainer's settings

**recipe** *paper* is as published: 30,000 steps, of which the 2,000 here are a first look. *fast* \
learns at higher rates that fall to zero over the run; give it a fifth of the steps or fewer. What \
is known of it comes from the toy model, so try it with few steps first.

**sample_every** A short video with the motion so far, every 250 steps; it plays on the node. It \
starts from the first clip's first frame. Connect a picture of yours to `first_frame`: does that \
one move, too?

**hold_out** One clip is not learned from, only measured. If its loss (orange in the plot) rises \
while the other falls, the clips are being learned by heart: stop, and take fewer steps.

**resume** Stopped, or the power failed? Choose *latest* and run again, with the same clips, seed \
and settings: it goes on from the newest state.

**Memory** Before the first step the node tells what the training will take: 7.3 GB here, by its \
estimate. If that is more than is free, it stops and names three settings that fit. With 8 GB or \
less set **optimizer** to *adamw8bit* (5.9 GB; it needs the package bitsandbytes).

Log, loss curve, samples and states lie in `output/lamp_training/horse_run_00001`. A state takes \
about 3 GB; delete them when you are content with the motion.
"""


def train_motion() -> Graph:
    """A motion file from a folder of clips."""
    chosen = {"folder": "input/horse_run", "prompt": "a horse runs"}
    report = {"source": Out("clips", "report")}
    trainer = {
        "model": Out("sd1", "MODEL"),
        "clip": Out("sd1", "CLIP"),
        "vae": Out("sd1", "VAE"),
        "clips": Out("clips", "clips"),
        "name": "horse_run",
        "hold_out": 1,
    }
    info = {"motion": Out("trainer", "motion")}
    return Graph(
        "lamp_train_motion",
        [
            [
                read_me(_TRAIN, (420, 470)),
                Group(
                    "1. Clips",
                    BLUE,
                    [
                        [Node("clips", "LAMP_TrainingClips", chosen, size=(400, 560))],
                        [Node("report", "PreviewAny", report, "Report", size=(400, 300))],
                    ],
                ),
                Group(
                    "2. Training",
                    GREEN,
                    [
                        [
                            sd1("Checkpoint: SD 1.x"),
                            Node("trainer", "LAMP_Trainer", trainer, size=(400, 880)),
                        ],
                        [Note(_SETTINGS, (420, 780))],
                    ],
                ),
                Group(
                    "3. The motion file",
                    ORANGE,
                    [[Node("info", "LAMP_MotionInfo", info, size=(400, 300))]],
                ),
            ]
        ],
    )
