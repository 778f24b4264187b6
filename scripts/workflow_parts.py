"""Pieces that the bundled workflows share."""

from __future__ import annotations

from typing import Any

from scripts.workflow_format import Group, Node, Note, Out

BLUE, GREEN, ORANGE, GREY = "#3f789e", "#5a8a5a", "#b06634", "#888888"
TEXT = (275, 110)
NOTE_WIDTH = 330

SD1 = "v1-5-pruned-emaonly-fp16.safetensors"
SDXL = "sd_xl_base_1.0.safetensors"
HUB = "https://huggingface.co"
MOTION = "horse_run_00001.safetensors"
# The front end's template list shows names of files: these are titles, in the order of use.
TITLES = {
    "lamp_toy_train_and_generate": "01 Train and use a motion - toy, no download",
    "lamp_animate_image": "02 Animate a picture",
    "lamp_train_motion": "03 Train a motion on your clips",
    "lamp_text_to_video_sdxl": "04 Text to video with SD-XL",
    "lamp_extend_video": "05 Extend a video",
    "lamp_long_video_windows": "06 Long video in windows",
    "lamp_few_steps_lora": "07 Few steps with a LoRA",
    "lamp_edit_video_sdxl": "08 Edit a video with SD-XL",
    "lamp_custom_sampling": "09 Custom sampling, part by part",
    "lamp_train_and_compare": "10 Train in stages and compare",
    "lamp_evaluate": "11 Measure a motion",
}
TOY_ENDING = " - toy, no download"
# Where motions come from; the authors' repository lists checkpoints and clips.
MOTIONS = f"""**No motion yet?** Train one (*{TITLES["lamp_train_motion"]}*), or convert one of \
the [authors'](https://github.com/RQ-Wu/LAMP) (CC BY-NC): the help of *Convert Official LAMP \
Checkpoint* has the steps."""
# By the operations of a UNet with a motion and without, see docs/performance.md.
PATIENCE = f"""**How long?** 16 frames take about as long as 20 pictures of that size and as many \
steps. *{TITLES["lamp_few_steps_lora"]}* takes 8 steps in place of 50."""
# What a workflow needs that moves a picture of the user's.
PICTURE_TABLE = f"""| File | Folder |
|---|---|
| `{SD1}` (or another SD 1.x) | `models/checkpoints` |
| a motion, such as `{MOTION}` | `models/lamp_motion` |"""
_SD1_URL = f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD1}"
_SDXL_URL = f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}"


def try_first(name: str) -> str:
    """The line that leads to a workflow's twin on the toy model."""
    return f"**Nothing installed yet?** *{TITLES[name]}{TOY_ENDING}* runs as it is."


def _checkpoint(key: str, file: str, url: str, title: str) -> Node:
    models = [{"name": file, "url": url, "directory": "checkpoints"}]
    return Node(
        key, "CheckpointLoaderSimple", {"ckpt_name": file}, title, size=(275, 118), models=models
    )


def sd1(title: str = "SD 1.x, moves the picture") -> Node:
    return _checkpoint("sd1", SD1, _SD1_URL, title)


def sdxl(title: str = "SD-XL, draws the first frame") -> Node:
    return _checkpoint("sdxl", SDXL, _SDXL_URL, title)


def picture() -> Node:
    """A picture of the user's."""
    return Node("image", "LoadImage", {"image": "example.png"}, "Your picture", size=(275, 340))


def load_motion(model: Out | None = None) -> Node:
    inputs = {"model": model or Out("sd1", "MODEL"), "motion_name": MOTION}
    return Node("motion", "LAMP_LoadMotion", inputs, size=(275, 324))


def first_frame(image: Out, frames: int = 16, collapsed: bool = False) -> Node:
    size = {"width": 512, "height": 320, "frames": frames}
    inputs = {"vae": Out("sd1", "VAE"), **size, "image": image}
    return Node("condition", "LAMP_FirstFrameCondition", inputs, collapsed=collapsed)


def matched(frames: Out, collapsed: bool = False) -> Node:
    return Node("matched", "LAMP_HistogramMatch", {"images": frames}, collapsed=collapsed)


def draw(positive: Out, negative: Out) -> Node:
    """SD-XL's sampler for a first frame."""
    inputs = {
        "model": Out("sdxl", "MODEL"),
        "positive": positive,
        "negative": negative,
        "latent_image": Out("canvas", "LATENT"),
        "steps": 30,
        "cfg": 7.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
    }
    return Node("draw", "KSampler", inputs)


def encode(key: str, text: Any, clip: Out, title: str) -> Node:
    """A prompt: one that is linked or empty is drawn as its title alone."""
    shown = isinstance(text, str) and bool(text) and "egative" not in title
    inputs = {"text": text, "clip": clip}
    return Node(key, "CLIPTextEncode", inputs, title, size=TEXT, collapsed=not shown)


def sample(
    model: Out, after: str = "randomize", key: str = "sample", title: str = "", **settings: Any
) -> Node:
    inputs = {
        "model": model,
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "latent": Out("condition", "latent"),
        **settings,
    }
    return Node(key, "LAMP_KSampler", inputs, title, after=after)


def small(key: str, kind: str, inputs: dict[str, Any], title: str = "") -> Node:
    """A node that is drawn as its title alone: nothing of it is to be set."""
    return Node(key, kind, inputs, title, collapsed=True)


def decode(key: str, samples: Out, vae: Out) -> Node:
    return small(key, "VAEDecode", {"samples": samples, "vae": vae})


def video(images: Out, fps: float | Out, prefix: str) -> list[Node]:
    """Create Video and Save Video."""
    saved = {"video": Out("video", "VIDEO"), "filename_prefix": prefix}
    made = Node("video", "CreateVideo", {"images": images, "fps": fps}, collapsed=True)
    # Newer hosts have one more widget here; the video makes the node grow.
    return [made, Node("save", "SaveVideo", saved, size=(275, 124))]


def read_me(*texts: tuple[str, int]) -> list[Group]:
    """The column of notes, each with its height."""
    notes = [Note(text, (NOTE_WIDTH, height)) for text, height in texts]
    return [Group("Read me", GREY, notes)]
