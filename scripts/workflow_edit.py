"""The bundled workflow that edits one clip (paper sec. 5.2), in a few words."""

from __future__ import annotations

from scripts.workflow_format import Graph, Group, Node, Out
from scripts.workflow_parts import (
    BLUE,
    GREEN,
    HUB,
    SD1,
    SDXL,
    TEXT,
    TITLES,
    decode,
    draw,
    encode,
    first_frame,
    matched,
    read_me,
    sample,
    sd1,
    sdxl,
    small,
    try_first,
    video,
)

CANNY = "diffusers_xl_canny_mid.safetensors"
_CANNY_URL = f"{HUB}/lllyasviel/sd_control_collection/resolve/main/{CANNY}"

_EDIT = f"""## Edit a video

Learns the motion of **one** clip, finds the noise that the clip could have come from, and draws \
the clip anew from an edited first frame: 16 frames, 512 x 320.

| File | Folder |
|---|---|
| `{SD1}` (or another SD 1.x) | `models/checkpoints` |
| `{SDXL}` | `models/checkpoints` |
| `{CANNY}` | `models/controlnet` |

{try_first("lamp_edit_video_sdxl")}

1. **Choose the clip**: mp4, at least 16 frames. **R** refreshes the lists.
2. Describe the clip in *LAMP Training Clips*, with what moves: *a horse runs*.
3. Describe the new first frame in *New look*: SD-XL draws it along the clip's edges. Select \
*Edited first frame*, press the play button above it, and change seed or prompt until you like it.
4. Run. The training takes 500 steps, once. The video is saved to `output/video`.
"""

_HOW = """**strength** in *LAMP DDIM Inversion*: 1 takes the clip all the way to noise, as in the \
paper. 0.6 keeps more of the clip's own frames, for small changes.

`steps` and `denoise` of *LAMP KSampler* come from there: leave the links, *ddim* and *ddim \
(official)*. Leave **the empty prompt** empty.

To edit the same clip again, put *Load LAMP Motion* in the place of the trainer."""


def edit_video() -> Graph:
    """The look of an edited first frame, the movement of the clip."""
    return Graph(
        "lamp_edit_video_sdxl",
        [
            read_me((_EDIT, 500), (_HOW, 230)),
            [_clip()],
            [_training(), _edges()],
            [_edited_frame(), _new_look()],
            [_editing()],
        ],
        TITLES["lamp_edit_video_sdxl"],
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
    chosen = {"folder": "(from images)", "prompt": "a horse runs", "images": Out("fitted", "IMAGE")}
    return Group(
        "1. The clip",
        BLUE,
        [
            Node("load", "LoadVideo", {"file": "clip.mp4"}, "Your clip", size=(275, 242)),
            small("parts", "GetVideoComponents", {"video": Out("load", "VIDEO")}),
            small("cut", "ImageFromBatch", cut, "The first 16 frames"),
            small("fitted", "ImageScale", fitted, "512 x 320"),
            Node("clips", "LAMP_TrainingClips", chosen),
        ],
    )


def _training() -> Group:
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
            sd1("SD 1.x, draws the video"),
            small("trainer", "LAMP_Trainer", trainer, "LAMP Trainer: 500 steps"),
        ],
    )


def _edges() -> Group:
    """The edges of the clip's first frame, and the new words."""
    single = {"image": Out("parts", "images"), "batch_index": 0, "length": 1}
    enlarged = {
        "image": Out("single", "IMAGE"),
        "upscale_method": "lanczos",
        "width": 1280,
        "height": 800,
        "crop": "center",
    }
    edges = {"image": Out("enlarged", "IMAGE"), "low_threshold": 0.2, "high_threshold": 0.5}
    clip, prompt = Out("sdxl", "CLIP"), Out("prompt", "STRING")
    written = {"value": "a zebra runs on the beach, side view, photo"}
    models = [{"name": CANNY, "url": _CANNY_URL, "directory": "controlnet"}]
    loaded = {"control_net_name": CANNY}
    title = "ControlNet: edges, for SD-XL"
    return Group(
        "3. Edited first frame: SD-XL",
        BLUE,
        [
            Node("prompt", "PrimitiveStringMultiline", written, "New look", size=TEXT),
            sdxl(),
            Node("controlnet", "ControlNetLoader", loaded, title, size=(275, 78), models=models),
            small("single", "ImageFromBatch", single, "Frame 1"),
            small("enlarged", "ImageScale", enlarged, "1280 x 800"),
            small("edges", "Canny", edges, "Edges"),
            encode("xl_positive", prompt, clip, "Prompt (SD-XL)"),
            encode("xl_negative", "blurry, deformed, text", clip, "Negative (SD-XL)"),
        ],
    )


def _edited_frame() -> Group:
    """SD-XL draws frame 1 anew along its edges."""
    control = {
        "positive": Out("xl_positive", "CONDITIONING"),
        "negative": Out("xl_negative", "CONDITIONING"),
        "control_net": Out("controlnet", "CONTROL_NET"),
        "image": Out("edges", "IMAGE"),
        "strength": 0.8,
        "end_percent": 0.8,
    }
    shown = {"images": Out("picture", "IMAGE")}
    return Group(
        "Drawn along the edges",
        BLUE,
        [
            small("control", "ControlNetApplyAdvanced", control),
            small("canvas", "EmptyLatentImage", {"width": 1280, "height": 800}),
            draw(Out("control", "positive"), Out("control", "negative")),
            decode("picture", Out("draw", "LATENT"), Out("sdxl", "VAE")),
            Node("preview", "PreviewImage", shown, "Edited first frame", size=(275, 160)),
        ],
    )


def _new_look() -> Group:
    """What the sampler starts from."""
    clip = Out("sd1", "CLIP")
    encoded = {"pixels": Out("fitted", "IMAGE"), "vae": Out("sd1", "VAE")}
    return Group(
        "Start and words",
        GREEN,
        [
            encode("positive", Out("prompt", "STRING"), clip, "Prompt (SD 1.x)"),
            encode("negative", "", clip, "The empty prompt"),
            small("encoded", "VAEEncode", encoded, "The clip, encoded"),
            first_frame(Out("picture", "IMAGE"), collapsed=True),
        ],
    )


def _editing() -> Group:
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
    return Group(
        "4. The clip with the new look",
        GREEN,
        [
            Node("inversion", "LAMP_DDIMInversion", inversion),
            sample(Out("trainer", "model"), after="fixed", **back),
            decode("frames", Out("sample", "latent"), Out("sd1", "VAE")),
            matched(Out("frames", "IMAGE"), collapsed=True),
            *video(Out("matched", "images"), _fps(), "video/LAMP"),
        ],
    )
