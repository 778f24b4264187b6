"""The bundled workflows for real checkpoints, in a few words each."""

from __future__ import annotations

from scripts.workflow_format import Graph, Group, Node, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    MOTION,
    MOTIONS,
    ORANGE,
    PATIENCE,
    PICTURE_TABLE,
    SD1,
    SDXL,
    TEXT,
    TITLES,
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
    small,
    try_first,
    video,
)

_MISTAKE = """**The commonest mistake:** SD-XL's MODEL in *Load LAMP Motion*. MODEL, CLIP and VAE \
of the SD 1.x checkpoint belong there."""

_TEXT_TO_VIDEO = f"""## Text to video

SD-XL draws the first frame. A LAMP motion on SD 1.x moves it: 16 frames, 512 x 320.

| File | Folder |
|---|---|
| `{SDXL}` | `models/checkpoints` |
| `{SD1}` (or another SD 1.x) | `models/checkpoints` |
| a motion, such as `{MOTION}` | `models/lamp_motion` |

{try_first("lamp_text_to_video_sdxl")}

{MOTIONS}

1. Choose the three files; **R** refreshes the lists.
2. Write the prompt in the words of the motion: *a horse runs*.
3. Run. The video is saved to `output/video`.

Good first frame, weak motion? Other seeds in *LAMP KSampler*. The video falls apart? **strength** \
of *Load LAMP Motion* 0.7.
"""


def text_to_video() -> Graph:
    """SD-XL draws the first frame, LAMP moves it."""
    clip, prompt = Out("sdxl", "CLIP"), Out("prompt", "STRING")
    written = {"value": "a white horse runs on the beach, side view, photo"}
    still = [
        sdxl(),
        Node("prompt", "PrimitiveStringMultiline", written, "Prompt, for both models", size=TEXT),
        encode("xl_positive", prompt, clip, "Prompt (SD-XL)"),
        encode("xl_negative", "blurry, deformed, text", clip, "Negative (SD-XL)"),
        small("canvas", "EmptyLatentImage", {"width": 1280, "height": 800}, "1280 x 800"),
        draw(Out("xl_positive", "CONDITIONING"), Out("xl_negative", "CONDITIONING")),
    ]
    shown = [
        decode("picture", Out("draw", "LATENT"), Out("sdxl", "VAE")),
        Node("preview", "PreviewImage", {"images": Out("picture", "IMAGE")}, size=(275, 240)),
    ]
    return Graph(
        "lamp_text_to_video_sdxl",
        [
            read_me((_TEXT_TO_VIDEO, 580), (_MISTAKE, 110)),
            [Group("First frame: SD-XL", BLUE, still)],
            [
                Group("First frame", BLUE, shown),
                Group("Motion: SD 1.x and LAMP", GREEN, [sd1(), load_motion()]),
            ],
            [_moving(Out("picture", "IMAGE"), prompt)],
            [_finished()],
        ],
        TITLES["lamp_text_to_video_sdxl"],
    )


def _moving(image: Out, text: str | Out) -> Group:
    """From a first frame to its latent video."""
    clip = Out("sd1", "CLIP")
    return Group(
        "Move it",
        GREEN,
        [
            encode("positive", text, clip, "Prompt: what happens"),
            encode("negative", "", clip, "Negative"),
            first_frame(image),
            sample(Out("motion", "model"), steps=50, cfg=12.5),
        ],
    )


def _finished() -> Group:
    items = [
        decode("frames", Out("sample", "latent"), Out("sd1", "VAE")),
        matched(Out("frames", "IMAGE")),
        *video(Out("matched", "images"), 8.0, "video/LAMP"),
    ]
    return Group("Video", ORANGE, items)


_ANIMATE = f"""## Animate a picture

A LAMP motion moves your picture: 16 frames, 512 x 320. Frame 1 of the video is your picture.

{PICTURE_TABLE}

{try_first("lamp_animate_image")}

{MOTIONS}

1. **Choose your picture.** It should show the start of the motion, from the side and in the size \
that the training clips show.
2. Choose checkpoint and motion; **R** refreshes the lists. The checkpoint must be SD 1.x.
3. Describe the picture and what happens in the motion's words, which *LAMP Motion Info* shows.
4. Run. The video is saved to `output/video`.

Hardly any motion? Other seeds, or **strength** 1.2. The video falls apart? **strength** 0.7.

{PATIENCE}
"""


def animate_image() -> Graph:
    """LAMP moves a picture of the user's."""
    return Graph(
        "lamp_animate_image",
        [
            read_me((_ANIMATE, 600)),
            [Group("Picture, SD 1.x and motion", BLUE, [picture(), sd1(), load_motion()])],
            [_moving(Out("image", "IMAGE"), "a brown horse runs on the grass")],
            [_finished()],
        ],
        TITLES["lamp_animate_image"],
    )


_TRAIN = f"""## Train a motion

Learns one motion from 8 to 16 short clips that show it, with different animals, people or things.

**No clips yet?** *{TITLES["lamp_toy_train_and_generate"]}* runs as it is. The \
[authors](https://github.com/RQ-Wu/LAMP) list the clips of their motions (CC BY-NC).

1. Put the clips into `input/horse_run` (mp4, mov, webm, mkv, gif, or a folder of pictures for \
each clip), at least 16 frames each. Press **R**, choose the folder.
2. Write the motion in words: *a horse runs*. A text file beside a clip (`clip.mp4`, `clip.txt`) \
is that clip's own caption.
3. Choose a SD 1.x checkpoint: `{SD1}` in `models/checkpoints`.
4. Select *Report* and press the play button above it: only the clips are read. Are they cut as \
you want them?
5. Run. The node tells the time left. Cancel keeps what was learned so far.

The motion is written to `models/lamp_motion`. Use it in *{TITLES["lamp_animate_image"]}*, with a \
prompt in the same words.
"""

_SETTINGS = """## The trainer's settings

**recipe** *paper* is as published: 30,000 steps, of which the 2,000 here are a first look. *fast* \
learns at higher, falling rates in a fifth of the steps or fewer.

**sample_every** A short video with the motion so far plays on the node. It starts from the first \
clip, or from a picture at `first_frame`.

**hold_out** One clip is only measured. If its loss (orange) rises while the other falls, the \
clips are learned by heart: take fewer steps.

**resume** Stopped? Choose *latest* and run again with the same clips, seed and settings.

**Memory** The node tells first what it will take: 7.3 GB here, by its estimate. If that is more \
than is free, it names three settings that fit. *adamw8bit* takes 5.9 GB and needs bitsandbytes.

Log, samples and states lie in `output/lamp_training`; a state takes about 3 GB.
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
    read = [
        Node("clips", "LAMP_TrainingClips", chosen),
        Node("report", "PreviewAny", report, "Report", size=(275, 150)),
    ]
    learn = [sd1("Checkpoint: SD 1.x"), Node("trainer", "LAMP_Trainer", trainer)]
    return Graph(
        "lamp_train_motion",
        [
            read_me((_TRAIN, 640)),
            [Group("1. Clips", BLUE, read)],
            [Group("2. Training", GREEN, learn)],
            [
                Group(
                    "3. The motion file",
                    ORANGE,
                    [Node("info", "LAMP_MotionInfo", info, size=(275, 150))],
                )
            ],
            read_me((_SETTINGS, 640)),
        ],
        TITLES["lamp_train_motion"],
    )
