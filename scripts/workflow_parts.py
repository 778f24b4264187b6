"""Pieces that the bundled workflows share."""

from __future__ import annotations

from typing import Any

from scripts.workflow_format import Group, Node, Note, Out

BLUE, GREEN, ORANGE, GREY = "#3f789e", "#5a8a5a", "#b06634", "#888888"
TEXT = (400, 140)
WIDE = (400, 0)

SD1 = "v1-5-pruned-emaonly-fp16.safetensors"
SDXL = "sd_xl_base_1.0.safetensors"
HUB = "https://huggingface.co"
MOTION = "horse_run_00001.safetensors"
# By the operations of a UNet with a motion and without, see docs/performance.md.
PATIENCE = """**How long?** Each step draws all frames: 16 of them take about as long as 20 \
pictures of that size and as many steps. **lamp_few_steps_lora** takes 8 steps in place of 50."""
# What a workflow needs that moves a picture of the user's.
PICTURE_TABLE = f"""| File | Folder |
|---|---|
| `{SD1}` (or another SD 1.x checkpoint) | `models/checkpoints` |
| a motion, such as `{MOTION}` | `models/lamp_motion` |"""
_SD1_URL = f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{SD1}"
_SDXL_URL = f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/{SDXL}"


def _checkpoint(key: str, file: str, url: str, title: str) -> Node:
    models = [{"name": file, "url": url, "directory": "checkpoints"}]
    return Node(key, "CheckpointLoaderSimple", {"ckpt_name": file}, title, size=WIDE, models=models)


def sd1(title: str = "Checkpoint: SD 1.x, moves the picture") -> Node:
    return _checkpoint("sd1", SD1, _SD1_URL, title)


def sdxl(title: str = "Checkpoint: SD-XL, draws the first frame") -> Node:
    return _checkpoint("sdxl", SDXL, _SDXL_URL, title)


def picture() -> Node:
    """A picture of the user's."""
    return Node("image", "LoadImage", {"image": "example.png"}, "Your picture", size=(400, 360))


def load_motion(model: Out | None = None) -> Node:
    inputs = {"model": model or Out("sd1", "MODEL"), "motion_name": MOTION}
    return Node("motion", "LAMP_LoadMotion", inputs, size=WIDE)


def first_frame(image: Out, frames: int = 16) -> Node:
    size = {"width": 512, "height": 320, "frames": frames}
    return Node(
        "condition", "LAMP_FirstFrameCondition", {"vae": Out("sd1", "VAE"), **size, "image": image}
    )


def matched(frames: Out) -> Node:
    return Node("matched", "LAMP_HistogramMatch", {"images": frames})


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
    return Node(key, "CLIPTextEncode", {"text": text, "clip": clip}, title, size=TEXT)


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


def decode(key: str, samples: Out, vae: Out) -> Node:
    return Node(key, "VAEDecode", {"samples": samples, "vae": vae})


def video(images: Out, fps: float | Out, prefix: str) -> list[Node]:
    """Create Video and Save Video."""
    saved = {"video": Out("video", "VIDEO"), "filename_prefix": prefix}
    # Newer hosts have one more widget here.
    tall = (400, 120)
    return [
        Node("video", "CreateVideo", {"images": images, "fps": fps}, size=tall),
        Node("save", "SaveVideo", saved, size=(400, 420)),
    ]


def read_me(text: str, size: tuple[int, int]) -> Group:
    return Group("Read me", GREY, [[Note(text, size)]])
