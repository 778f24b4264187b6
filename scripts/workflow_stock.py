"""The bundled workflows with ComfyUI's own samplers."""

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
    matched,
    picture,
    read_me,
    sd1,
    try_first,
    video,
)

LORA = "lcm-lora-sdv1-5.safetensors"
_LORA_URL = (
    f"{HUB}/latent-consistency/lcm-lora-sdv1-5/resolve/main/pytorch_lora_weights.safetensors"
)
_PROMPT = "a brown horse runs on the grass"

_FEW = f"""## Few steps

ComfyUI's own *KSampler* and a LoRA that needs 8 steps in place of 50: 16 frames, 512 x 320.

{PICTURE_TABLE}
| `{LORA}` | `models/loras` |

The LoRA is [lcm-lora-sdv1-5]({HUB}/latent-consistency/lcm-lora-sdv1-5): its file is called \
`pytorch_lora_weights.safetensors`, so give it the name above.

{try_first("lamp_few_steps_lora")}

{MOTIONS}

1. Choose picture, checkpoint, LoRA and motion. LoRA and motion may stand in either order.
2. Describe what happens in the words of the motion.
3. Run.
"""

_STOCK = """**Why this works:** the MODEL of *Load LAMP Motion* keeps frame 1 and mixes the noise \
in any sampler. Only the AdaIN between the steps belongs to *LAMP KSampler*; *Histogram Match* \
holds the colours here.

**cfg** 1 to 2: with a few-step LoRA more burns the colours.

**Other LoRAs** for SD 1.x, of a style for instance, go the same way, with 20 steps or more, \
sampler *euler* and cfg 7 or more."""


def few_steps() -> Graph:
    """The stock KSampler with a LoRA for few steps."""
    clip = Out("sd1", "CLIP")
    lora = {"model": Out("sd1", "MODEL"), "lora_name": LORA, "strength_model": 1.0}
    models = [{"name": LORA, "url": _LORA_URL, "directory": "loras"}]
    sampler = {
        "model": Out("lcm", "MODEL"),
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "latent_image": Out("condition", "latent"),
        "steps": 8,
        "cfg": 1.5,
        "sampler_name": "lcm",
        "scheduler": "sgm_uniform",
    }
    changed = {"model": Out("motion", "model"), "sampling": "lcm"}
    models_group = [
        sd1(),
        Node("lora", "LoraLoaderModelOnly", lora, size=(275, 104), models=models),
        load_motion(Out("lora", "MODEL")),
        Node("lcm", "ModelSamplingDiscrete", changed),
    ]
    start = [
        picture(),
        encode("positive", _PROMPT, clip, "Prompt"),
        encode("negative", "", clip, "Negative"),
        first_frame(Out("image", "IMAGE")),
    ]
    return Graph(
        "lamp_few_steps_lora",
        [
            read_me((_FEW, 520), (_STOCK, 240)),
            [Group("SD 1.x, a few-step LoRA, a motion", GREEN, models_group)],
            [Group("Picture and prompt", BLUE, start)],
            [
                Group(
                    "Video",
                    ORANGE,
                    [
                        Node("sample", "KSampler", sampler, after="randomize"),
                        decode("frames", Out("sample", "LATENT"), Out("sd1", "VAE")),
                        matched(Out("frames", "IMAGE")),
                        *video(Out("matched", "images"), 8.0, "video/LAMP_few_steps"),
                    ],
                )
            ],
        ],
        TITLES["lamp_few_steps_lora"],
    )


_CUSTOM = f"""## The paper's sampling in pieces

*SamplerCustomAdvanced* with every part by itself: noise, guider, sampler, noise levels. As it \
stands it is what *LAMP KSampler* does in one node: 16 frames, 512 x 320.

{PICTURE_TABLE}

{try_first("lamp_custom_sampling")}

{MOTIONS}

1. Choose picture, checkpoint and motion, describe what happens in the words of the motion.
2. Run.
3. Now exchange a part: another guider, another SAMPLER or SIGMAS of ComfyUI, more shared noise.
"""

_PARTS = """| Part | Here | Others that fit |
|---|---|---|
| NOISE | *Shared Noise Latents*, alpha 0.2 (eq. 6) | *RandomNoise*: *Load LAMP Motion* mixes it |
| GUIDER | *CFGGuider*, 12.5 | *BasicGuider*, *DualCFGGuider* |
| SAMPLER | *LAMP Sampler* with AdaIN | *KSamplerSelect*, without AdaIN |
| SIGMAS | *LAMP Scheduler*, official DDIM | *BasicScheduler*, *KarrasScheduler* |

A MODEL with a motion never mixes noise twice."""


def custom_sampling() -> Graph:
    """SamplerCustomAdvanced with LAMP's parts, each by itself."""
    clip = Out("sd1", "CLIP")
    model = Out("motion", "model")
    guider = {
        "model": model,
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "cfg": 12.5,
    }
    parts = {
        "noise": Out("noise", "noise"),
        "guider": Out("guider", "GUIDER"),
        "sampler": Out("sampler", "sampler"),
        "sigmas": Out("sigmas", "sigmas"),
        "latent_image": Out("condition", "latent"),
    }
    noise = {"latent": Out("condition", "latent")}
    schedule = {"adain_schedule": Out("schedule", "schedule")}
    start = [
        encode("positive", _PROMPT, clip, "Prompt"),
        encode("negative", "", clip, "Negative"),
        first_frame(Out("image", "IMAGE")),
        Node("guider", "CFGGuider", guider),
        Node("sigmas", "LAMP_Scheduler", {"model": model, "steps": 50}),
    ]
    rest = [
        Node("noise", "LAMP_SharedNoise", noise),
        Node("schedule", "LAMP_AdaINSchedule"),
        Node("sampler", "LAMP_Sampler", schedule),
    ]
    joined = [
        Node("sample", "SamplerCustomAdvanced", parts),
        decode("frames", Out("sample", "output"), Out("sd1", "VAE")),
        matched(Out("frames", "IMAGE")),
        *video(Out("matched", "images"), 8.0, "video/LAMP_custom"),
    ]
    return Graph(
        "lamp_custom_sampling",
        [
            read_me((_CUSTOM, 465), (_PARTS, 260)),
            [Group("Picture, SD 1.x and motion", BLUE, [picture(), sd1(), load_motion()])],
            [Group("Latent, guider, noise levels", GREEN, start)],
            [Group("Noise and sampler", GREEN, rest)],
            [Group("Video", ORANGE, joined)],
        ],
        TITLES["lamp_custom_sampling"],
    )
