"""The bundled workflows: canvas files for ComfyUI's front end, and the same graphs for its API.

The canvas files in `workflows/` are the source. `python -m scripts.workflows` refreshes the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.server.host import ROOT

FOLDER = ROOT / "workflows"
API = FOLDER / "api"  # the front end's template list does not look into sub-folders
BLUEPRINT = ROOT / "subgraphs" / "Image to LAMP video.json"

# Name of the API file -> title: the name of the canvas file, which the template list shows.
ORIGINALS = {
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
# The toy twins run without a download. Workflow 01 is the twin of those that train.
_TRAIN = ("lamp_toy_train_and_generate", "lamp_train_motion", "lamp_train_and_compare")
TWINS = {f"{name}_toy": name for name in ORIGINALS if name not in _TRAIN}
TITLES = ORIGINALS | {
    twin: f"{ORIGINALS[original]} - toy, no download" for twin, original in TWINS.items()
}


def canvas_file(name: str) -> Path:
    return FOLDER / f"{TITLES[name]}.json"


def load_canvas(name: str) -> dict[str, Any]:
    """A workflow as the front end opens it."""
    return json.loads(canvas_file(name).read_text(encoding="utf-8"))


def load_api(name: str) -> dict[str, Any]:
    """A workflow as POST /prompt takes it."""
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
