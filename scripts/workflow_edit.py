"""The bundled workflow that edits one clip (paper sec. 5.2), in a few words."""

from __future__ import annotations

from scripts.workflow_format import Graph, Group, Node, Note, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    GREY,
    HUB,
    ORANGE,
    SD1,
    SDXL,
    TEXT,
    WIDE,
    decode,
    draw,
    encode,
    first_frame,
    matched,
    read_me,
    sample,
    sd1,
    sdxl,
    video,
)

CANNY = "diffusers_xl_canny_mid.safetensors"
_CANNY_URL = f"{HUB}/lllyasviel/sd_control_collection/resolve/main/{CANNY}"

_EDIT = f"""## Edit a video

Learns the motion of **one** clip, finds the noise that the clip could have come from, and draws \
the clip anew from an edited first frame: 16 frames, 512 x 320.

| File | Folder |
|---|---|
| `{SD1}` (or another SD 1.x checkpoint) | `models/checkpoints` |
| `{SDXL}` | `models/checkpoints` |
| `{CANNY}` (edges, for SD-XL) | `models/controlnet` |

1. **Choose the clip** in *Load Video*: mp4, at least 16 frames; the first 16 are taken. Press \
**R** after adding files.
2. Describe the clip as it is in *LAMP Training Clips*, with what moves: *a horse runs*.
3. Describe the new first frame in *Prompt, new look*: SD-XL draws it along the clip's edges. Look \
at it (*Edited first frame*) and change seed or prompt until you like it.
4. Run. The training takes 500 steps; it is not done again while clip and settings stay the same. \
The video is saved to `output/video`.

Do step 3 first: select *Edited first frame* and press the play button above it.
"""

_HOW = """## Editing strength

**strength** in *LAMP DDIM Inversion*: 1 takes the clip all the way to noise, as in the paper, for \
a new look. 0.6 keeps more of the clip's own frames, for small changes.

`steps` and `denoise` of *LAMP KSampler* come from *LAMP DDIM Inversion*: leave the links, the \
sampler *ddim* and the scheduler *ddim (official)*.

**The empty prompt** belongs to the inversion: leave it empty. It is the negative prompt, too.

The motion file of the clip lies in `models/lamp_motion`. To edit the same clip another time, put \
*Load LAMP Motion* in the place of *LAMP Trainer*.
"""


def edit_video() -> Graph:
    """The look of an edited first frame, the movement of the clip."""
    return Graph(
        "lamp_edit_video_sdxl",
        [
            [read_me(_EDIT, (420, 550)), _clip(), _training()],
            [_edited_frame()],
            [
                Group("About this", GREY, [[Note(_HOW, (420, 420))]]),
                _editing(),
                Group("5. Video", ORANGE, [video(Out("matched", "images"), _fps(), "video/LAMP")]),
            ],
        ],
    )


def _fps() -> Out:
    return Out("parts", "fps")


def _clip() -> Group:
    cut = {"image": Out("parts", "images"), "batch_index": 0, "length": 16}
    fitted = {
        "image": Out("cut", "IMAGE"),
        "upscale_method": "lanczos",
        "width": 512,
        "height": 320,
        "crop": "center",
    }
    return Group(
        "1. The clip",
        BLUE,
        [
            [
                Node("load", "LoadVideo", {"file": "clip.mp4"}, "Your clip", size=(400, 360)),
                Node("parts", "GetVideoComponents", {"video": Out("load", "VIDEO")}),
            ],
            [
                Node("cut", "ImageFromBatch", cut, "The first 16 frames"),
                Node("fitted", "ImageScale", fitted, "512 x 320"),
            ],
        ],
    )


def _training() -> Group:
    chosen = {"folder": "(from images)", "prompt": "a horse runs", "images": Out("fitted", "IMAGE")}
    trainer = {
        "model": Out("sd1", "MODEL"),
        "clip": Out("sd1", "CLIP"),
        "vae": Out("sd1", "VAE"),
        "clips": Out("clips", "clips"),
        "steps": 500,
        "name": "one_clip",
    }
    return Group(
        "2. Its motion",
        GREEN,
        [
            [
                sd1("Checkpoint: SD 1.x, draws the video"),
                Node("clips", "LAMP_TrainingClips", chosen, size=(400, 560)),
            ],
            [Node("trainer", "LAMP_Trainer", trainer, size=(400, 880))],
        ],
    )


def _edited_frame() -> Group:
    """SD-XL draws frame 1 anew along its edges."""
    clip = Out("sdxl", "CLIP")
    single = {"image": Out("parts", "images"), "batch_index": 0, "length": 1}
    enlarged = {
        "image": Out("single", "IMAGE"),
        "upscale_method": "lanczos",
        "width": 1280,
        "height": 800,
        "crop": "center",
    }
    edges = {"image": Out("enlarged", "IMAGE"), "low_threshold": 0.2, "high_threshold": 0.5}
    control = {
        "positive": Out("xl_positive", "CONDITIONING"),
        "negative": Out("xl_negative", "CONDITIONING"),
        "control_net": Out("controlnet", "CONTROL_NET"),
        "image": Out("edges", "IMAGE"),
        "strength": 0.8,
        "end_percent": 0.8,
    }
    models = [{"name": CANNY, "url": _CANNY_URL, "directory": "controlnet"}]
    return Group(
        "3. Edited first frame: SD-XL and its ControlNet",
        BLUE,
        [
            [
                sdxl(),
                Node(
                    "controlnet",
                    "ControlNetLoader",
                    {"control_net_name": CANNY},
                    "ControlNet: edges, for SD-XL",
                    size=WIDE,
                    models=models,
                ),
            ],
            [
                Node("single", "ImageFromBatch", single, "Frame 1"),
                Node("enlarged", "ImageScale", enlarged, "1280 x 800"),
                Node("edges", "Canny", edges, "Edges"),
            ],
            [
                Node(
                    "prompt",
                    "PrimitiveStringMultiline",
                    {"value": "a zebra runs on the beach, side view, photo"},
                    "Prompt, new look, for both models",
                    size=TEXT,
                ),
                encode("xl_positive", Out("prompt", "STRING"), clip, "Prompt (SD-XL)"),
                encode("xl_negative", "blurry, deformed, text", clip, "Negative (SD-XL)"),
            ],
            [
                Node("control", "ControlNetApplyAdvanced", control),
                Node("canvas", "EmptyLatentImage", {"width": 1280, "height": 800}),
                draw(Out("control", "positive"), Out("control", "negative")),
            ],
            [
                decode("picture", Out("draw", "LATENT"), Out("sdxl", "VAE")),
                Node(
                    "preview",
                    "PreviewImage",
                    {"images": Out("picture", "IMAGE")},
                    "Edited first frame",
                    size=(400, 320),
                ),
            ],
        ],
    )


def _editing() -> Group:
    clip = Out("sd1", "CLIP")
    inversion = {
        "model": Out("trainer", "model"),
        "conditioning": Out("negative", "CONDITIONING"),
        "latent": Out("encoded", "LATENT"),
    }
    back = {
        "noise": Out("inversion", "noise_latent"),
        "steps": Out("inversion", "steps"),
        "denoise": Out("inversion", "denoise"),
        "cfg": 12.5,
    }
    encoded = {"pixels": Out("fitted", "IMAGE"), "vae": Out("sd1", "VAE")}
    return Group(
        "4. The clip with the new look: SD 1.x and LAMP",
        GREEN,
        [
            [
                encode("positive", Out("prompt", "STRING"), clip, "Prompt (SD 1.x)"),
                encode("negative", "", clip, "The empty prompt"),
                Node("encoded", "VAEEncode", encoded, "The clip, encoded"),
            ],
            [
                Node("inversion", "LAMP_DDIMInversion", inversion),
                first_frame(Out("picture", "IMAGE")),
            ],
            [
                sample(Out("trainer", "model"), after="fixed", **back),
                decode("frames", Out("sample", "latent"), Out("sd1", "VAE")),
                matched(Out("frames", "IMAGE")),
            ],
        ],
    )
