"""The bundled workflow that trains in stages and lays their videos side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scripts.workflow_format import Graph, Group, Node, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    ORANGE,
    SD1,
    TITLES,
    decode,
    encode,
    first_frame,
    picture,
    read_me,
    sample,
    sd1,
    small,
    video,
)

_COMPARE = f"""## Train in stages and compare them

How many steps are enough? One training in three stages, and after each the same picture with the \
same noise. The video shows them side by side: 1000, 2000 and 3000 steps.

**No clips yet?** *{TITLES["lamp_toy_train_and_generate"]}* runs as it is.

1. Put the clips into `input/horse_run`, press **R**, choose the folder, write the motion in words.
2. Choose a SD 1.x checkpoint, `{SD1}` in `models/checkpoints`.
3. Choose a picture that no clip shows: what you want to move.
4. Run. Each stage goes on where the one before ended; nothing is learned twice.
5. Take the stage that moves well and still looks like your picture: `horse_run_1000_00001`, \
`horse_run_2000_00001`, or the last one, `horse_run_00001`, all in `models/lamp_motion`.

Disk: three motions of 508 MB, and two states of about 3 GB in `output/lamp_training`.
"""

_STAGES = """## Stages

The second and third trainer have **resume** *latest*: they go on with the training of the same \
**name**. All three need the same clips, seed and settings; only **steps** differ.

**recipe** must be *paper* here: *fast* ends its rate with its last step, so it cannot go on.

The trainers of the later stages are folded: click the dot in their title. A **new** motion needs \
a new **name** in all three."""

STEPS = (1000, 2000, 3000)


def train_and_compare() -> Graph:
    """Three stages of one training, one picture."""
    chosen = {"folder": "input/horse_run", "prompt": "a horse runs"}
    clip = Out("sd1", "CLIP")
    saved = {"images": Out("all", "IMAGE")}
    first_two = {"image1": _frames(0), "image2": _frames(1), "spacing_width": 8}
    all_three = {"image1": Out("two", "IMAGE"), "image2": _frames(2), "spacing_width": 8}
    start = [
        Node("clips", "LAMP_TrainingClips", chosen),
        sd1("Checkpoint: SD 1.x"),
    ]
    unseen = [
        picture(),
        encode("positive", "a brown horse runs on the grass", clip, "Prompt"),
        encode("negative", "", clip, "Negative"),
        first_frame(Out("image", "IMAGE"), collapsed=True),
    ]
    beside = [
        small("two", "ImageStitch", first_two),
        small("all", "ImageStitch", all_three),
        *video(saved["images"], 8.0, "video/LAMP_stages"),
    ]
    return Graph(
        "lamp_train_and_compare",
        [
            read_me((_COMPARE, 430), (_JUDGE, 260)),
            [Group("1. Clips and model", BLUE, start)],
            [Group("2. A new picture", BLUE, unseen), *read_me((_STAGES, 210))],
            [_stage(0)],
            [_stage(1), _stage(2), Group("6. Side by side", ORANGE, beside)],
        ],
        TITLES["lamp_train_and_compare"],
    )


_JUDGE = """## Which one?

**It hardly moves:** more steps. **It moves, and the picture holds:** take this one. **The picture \
begins to look like the clips, or falls apart:** one stage earlier, or **strength** 0.7.

*hold_out* 1 in all three trainers adds the loss on a clip that is not learned from: when it rises \
while the other falls, the stage before was long enough."""


def _frames(number: int) -> Out:
    return Out(f"frames{number}", "IMAGE")


def _stage(number: int) -> Group:
    steps, last = STEPS[number], number == len(STEPS) - 1
    trainer: dict[str, Any] = {
        "model": Out("sd1", "MODEL"),
        "clip": Out("sd1", "CLIP"),
        "vae": Out("sd1", "VAE"),
        "clips": Out("clips", "clips"),
        "steps": steps,
        "name": "horse_run",
        "resume": "latest" if number else "none",
        "first_frame": _frames(number - 1) if number else Out("image", "IMAGE"),
    }
    key, kept = f"trainer{number}", f"horse_run_{steps}"
    save = {"motion": Out(key, "motion"), "filename_prefix": kept}
    model = Out(key, "model")
    return Group(
        f"{number + 3}. {steps} steps",
        GREEN,
        [
            Node(key, "LAMP_Trainer", trainer, f"LAMP Trainer: to {steps}", collapsed=number > 0),
            replace(
                sample(model, after="fixed", key=f"sample{number}", title=f"After {steps} steps"),
                collapsed=True,
            ),
            decode(f"frames{number}", Out(f"sample{number}", "latent"), Out("sd1", "VAE")),
            *([] if last else [small(f"save{number}", "LAMP_SaveMotion", save)]),
        ],
    )
