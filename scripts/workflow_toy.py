"""The bundled workflow on the toy base: train and generate without a download."""

from __future__ import annotations

from typing import Any

from scripts.workflow_format import Graph, Group, Node, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    ORANGE,
    TITLES,
    decode,
    encode,
    read_me,
    sample,
    small,
    video,
)

_TOY = """## Train and generate, without a download

A toy model of the same architecture as Stable Diffusion 1.x comes with the pack. It draws \
coloured objects at 32 x 32 pixels. On a CPU the training takes some minutes, a video seconds.

1. Eight clips show different objects with one motion: they move right.
2. *LAMP Trainer* learns what they share.
3. *LAMP Toy Object* gives the first frame of an object that no clip shows.
4. The learned motion moves it. Left: how it ought to move. Right: generated.

Try another **number** or **hard** in *LAMP Toy Object*: the motion is not trained again. Keep its \
seed equal to the one of *LAMP Toy Clips*, or the object may be one of the clips'.

The motion of this workflow comes with the pack, already learned: the templates that end in *toy, \
no download* use it.

Try another **motion**, too: the same in *LAMP Toy Clips* and *LAMP Toy Object*. For `grow` set \
**adain** of *LAMP KSampler* to `off`, or the growing object fades.
"""

# The settings of benchmarks/motion.py, which measures what they give.
TOY_TRAINING: dict[str, Any] = {
    "recipe": "fast",
    "steps": 300,
    "batch": 2,
    "precision": "fp32",
    "checkpointing": "off",
    "sample_every": 100,
    "sample_cfg": 1.0,
}
TOY_SAMPLING: dict[str, Any] = {"steps": 20, "cfg": 1.0, "adain": "paper"}
TOY_SIZE = {"width": 32, "height": 32, "frames": 8}


def toy_train_and_generate() -> Graph:
    """The whole path on the toy base, but for histogram matching.

    Matching moves levels, and these pictures have few of them: it left the score as it was and
    put specks onto the flat grounds.
    """
    clips = {
        "folder": "(from images)",
        "prompt": Out("toy_clips", "prompts"),
        "images": Out("toy_clips", "clips"),
        **TOY_SIZE,
    }
    trainer = {
        "model": Out("base", "model"),
        "clip": Out("base", "clip"),
        "vae": Out("base", "vae"),
        "clips": Out("clips", "clips"),
        "name": "toy_moves_right",
        **TOY_TRAINING,
    }
    condition = {
        "vae": Out("base", "vae"),
        "image": Out("object", "first_frame"),
        **TOY_SIZE,
    }
    score = {"images": Out("frames", "IMAGE"), "case": Out("object", "case")}
    beside = {"image1": Out("object", "truth"), "image2": Out("frames", "IMAGE")}
    larger = {"image": Out("beside", "IMAGE"), "width": 544, "height": 256}
    animated = {
        "images": Out("larger", "IMAGE"),
        "filename_prefix": "LAMP/toy",
        "fps": 6.0,
        "method": "default",
    }
    encoder = Out("base", "clip")
    condition_node = small("condition", "LAMP_FirstFrameCondition", condition)
    return Graph(
        "lamp_toy_train_and_generate",
        [
            read_me((_TOY, 530)),
            [
                Group(
                    "1. Eight clips of a motion, and a model",
                    BLUE,
                    [
                        Node("toy_clips", "LAMP_ToyClips"),
                        Node("base", "LAMP_LoadToyBase"),
                        Node("clips", "LAMP_TrainingClips", clips),
                    ],
                )
            ],
            [
                Group(
                    "2. Learn it",
                    GREEN,
                    [
                        Node(
                            "info",
                            "LAMP_MotionInfo",
                            {"motion": Out("trainer", "motion")},
                            size=(275, 90),
                        ),
                        # The last one: it grows by what it has learned.
                        Node("trainer", "LAMP_Trainer", trainer),
                    ],
                )
            ],
            [
                Group(
                    "3. An object that no clip shows",
                    BLUE,
                    [
                        Node("object", "LAMP_ToyObject", {"number": 0}),
                        condition_node,
                        encode("positive", Out("object", "prompt"), encoder, "Prompt"),
                        encode("negative", "", encoder, "Negative"),
                    ],
                ),
                Group(
                    "4. Move it",
                    GREEN,
                    [sample(Out("trainer", "model"), **TOY_SAMPLING, after="fixed")],
                ),
            ],
            [
                Group(
                    "5. Look: truth left, generated right",
                    ORANGE,
                    [
                        decode("frames", Out("sample", "latent"), Out("base", "vae")),
                        Node("score", "LAMP_ToyScore", score, size=(275, 100)),
                        small("beside", "ImageStitch", {**beside, "spacing_width": 4}),
                        small("larger", "ImageScale", larger),
                        Node("animated", "SaveAnimatedWEBP", animated),
                        *video(Out("larger", "IMAGE"), 6.0, "video/LAMP_toy"),
                    ],
                )
            ],
        ],
        TITLES["lamp_toy_train_and_generate"],
    )
