"""The bundled workflows for videos longer than the clips of a motion."""

from __future__ import annotations

from scripts.workflow_format import Graph, Group, Node, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    MOTIONS,
    ORANGE,
    PICTURE_TABLE,
    TITLES,
    decode,
    encode,
    first_frame,
    load_motion,
    matched,
    picture,
    read_me,
    sample,
    sd1,
    try_first,
    video,
)

_EXTEND = f"""## A longer video, piece by piece

Moves your picture for 16 frames, then goes on from the last frame, twice: 46 frames, 512 x 320.

{PICTURE_TABLE}

{try_first("lamp_extend_video")}

{MOTIONS}

1. Choose picture, checkpoint and motion, describe what happens in the words of the motion.
2. Run. *LAMP KSampler* makes the first piece, *LAMP Extend Video* the others.
3. Not long enough? Raise **times** in *LAMP Extend Video*: each time adds 15 frames. The first \
piece is not drawn again.

This way suits motions that travel: a horse that runs. For motions that come round again, such as \
rain or a waving hand, take *{TITLES["lamp_long_video_windows"]}*.
"""

_COLOURS = """**Colours that wander** from piece to piece are held by *hold_colors* of *LAMP \
Extend Video* and by *Histogram Match*. Lower both where the light is meant to change."""


def extend_video() -> Graph:
    """A first piece, and more of the same motion from its last frame."""
    clip = Out("sd1", "CLIP")
    more = {
        "model": Out("motion", "model"),
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "latent": Out("sample", "latent"),
        "times": 2,
        "seed": 1,
    }
    first = [
        encode("positive", "a brown horse runs on the grass", clip, "Prompt"),
        encode("negative", "", clip, "Negative"),
        first_frame(Out("image", "IMAGE")),
        sample(Out("motion", "model"), after="fixed"),
    ]
    finished = [
        decode("frames", Out("more", "latent"), Out("sd1", "VAE")),
        matched(Out("frames", "IMAGE")),
        *video(Out("matched", "images"), 8.0, "video/LAMP_longer"),
    ]
    return Graph(
        "lamp_extend_video",
        [
            read_me((_EXTEND, 505), (_COLOURS, 120)),
            [Group("Picture, SD 1.x and motion", BLUE, [picture(), sd1(), load_motion()])],
            [Group("First piece", GREEN, first)],
            [Group("More of it", GREEN, [Node("more", "LAMP_ExtendVideo", more)])],
            [Group("Video", ORANGE, finished)],
        ],
        TITLES["lamp_extend_video"],
    )


_WINDOWS = f"""## A long video in windows

Moves your picture for 48 frames, 512 x 320. The model sees 16 frames at a time, frame 1 always \
among them, so the look holds and the memory stays that of a short video.

{PICTURE_TABLE}

{try_first("lamp_long_video_windows")}

{MOTIONS}

1. Choose picture, checkpoint and motion, describe what happens in the words of the motion.
2. Set **frames** in *LAMP First-Frame Condition* to the length that you want.
3. Run.

This way suits motions that come round again: rain, waves, a waving hand. Each window starts anew \
from frame 1, so what travels would come back: take *{TITLES["lamp_extend_video"]}* for that.
"""

_OVERLAP = """**length** is the number of frames that the motion was trained on. More **overlap** \
is smoother and slower: 16 frames with 4 of overlap make 11 new ones in each window."""


def long_video_windows() -> Graph:
    """One long latent, of which the model sees a window at a time."""
    clip = Out("sd1", "CLIP")
    windows = {"model": Out("motion", "model")}
    start = [
        Node("windows", "LAMP_AnchoredWindows", windows),
        encode("positive", "rain falls on a city street", clip, "Prompt"),
        encode("negative", "", clip, "Negative"),
        first_frame(Out("image", "IMAGE"), frames=48),
    ]
    drawn = [
        sample(Out("windows", "model"), after="fixed"),
        decode("frames", Out("sample", "latent"), Out("sd1", "VAE")),
        matched(Out("frames", "IMAGE")),
    ]
    return Graph(
        "lamp_long_video_windows",
        [
            read_me((_WINDOWS, 505), (_OVERLAP, 120)),
            [Group("Picture, SD 1.x and motion", BLUE, [picture(), sd1(), load_motion()])],
            [Group("48 frames, 16 at a time", GREEN, start)],
            [Group("Move it", GREEN, drawn)],
            [Group("Video", ORANGE, video(Out("matched", "images"), 8.0, "video/LAMP_windows"))],
        ],
        TITLES["lamp_long_video_windows"],
    )
