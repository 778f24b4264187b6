"""A bundled workflow on the toy base: the same graph, run where there are no checkpoints.

Checkpoints give way to the toy base, the user's files to the toy world's, sizes and steps to the
toy's. What has no toy likeness is left out: LoRA, ControlNet and the CLIP that measures.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.workflow_toy import TOY_SIZE, TOY_TRAINING

Prompt = dict[str, dict[str, Any]]

# Class -> output slot -> the input that takes its place.
LEFT_OUT: dict[str, dict[int, str]] = {
    "LoraLoaderModelOnly": {0: "model"},
    "ControlNetApplyAdvanced": {0: "positive", 1: "negative"},
    "ControlNetLoader": {},
    "CLIPLoader": {},
    "CLIPVisionLoader": {},
}
# The rates of the recipe `fast`, without their fall to zero: a training in stages has to go on.
_STAGES = {
    "learning_rate": 2e-3,
    "conv_rate": 1.0,
    "attention_rate": 1.0,
    "query_rate": 1.0,
    "reference_width": 64,
    "rate_schedule": "constant",
    "warmup": 0,
    "weight_decay": 0.01,
    "ema": 0.0,
    "min_snr": 1.0,
    "groupnorm": "pooled",
    "query_decay": "change",
}
# The toy's latent has 16 x 16 places; this node counts eight pixels for each.
_EMPTY = {"width": 128, "height": 128}


@dataclass(frozen=True)
class Toy:
    """What stands in for the user's files, by the names that the server knows.

    `training` and `steps` are the settings of trainers and samplers; a trainer takes `training`'s
    steps for each 1000 of its own.
    """

    motion: str
    picture: str
    clip: str
    caption: str
    motion_kind: str = "moves_right"
    training: Mapping[str, Any] = field(default_factory=lambda: TOY_TRAINING)
    steps: int = 20


def on_toy(prompt: Mapping[str, Mapping[str, Any]], toy: Toy) -> Prompt:
    """The workflow `prompt` (API format) with the toy's models, files and sizes."""
    changed = copy.deepcopy({key: dict(node) for key, node in prompt.items()})
    for node in list(changed.values()):
        _change(node, toy)
    _feed_clips(changed, toy)
    _keep_rate(changed)
    return _without_left_out(changed)


def _change(node: dict[str, Any], toy: Toy) -> None:
    kind, inputs = node["class_type"], node["inputs"]
    if kind == "CheckpointLoaderSimple":
        node["class_type"], node["inputs"] = "LAMP_LoadToyBase", {}
    elif kind in ("CLIPTextEncode", "PrimitiveStringMultiline"):
        name = "text" if kind == "CLIPTextEncode" else "value"
        if isinstance(inputs[name], str) and "egative" not in node["_meta"]["title"]:
            inputs[name] = toy.caption if inputs[name] else ""
    for name, value in toy_settings(kind, inputs, toy).items():
        if name in inputs and not isinstance(inputs[name], list):
            inputs[name] = value


def toy_settings(kind: str, inputs: Mapping[str, Any], toy: Toy) -> Mapping[str, Any]:
    """The toy's values for a node's widgets; those that a node lacks do not matter."""
    size = {"width": TOY_SIZE["width"], "height": TOY_SIZE["height"]}
    trained = TOY_SIZE["frames"]
    shared = {
        "LoadImage": {"image": toy.picture},
        "LoadVideo": {"file": toy.clip},
        "LAMP_LoadMotion": {"motion_name": toy.motion},
        "EmptyLatentImage": _EMPTY,
        "ImageScale": size,
        "ImageFromBatch": {"length": min(trained, inputs.get("length", trained))},
        # Long videos stay as many times longer than what was trained.
        "LAMP_FirstFrameCondition": {**size, "frames": inputs.get("frames", 16) * trained // 16},
        "LAMP_AnchoredWindows": {"length": trained, "overlap": 2},
        "LAMP_TrainingClips": {**size, "frames": trained, "prompt": toy.caption},
        "LAMP_VideoMetrics": {"frames": trained},
        "LAMP_ExtendVideo": {"frames": trained, "steps": toy.steps, "cfg": 1.0},
        "LAMP_KSampler": {"steps": toy.steps, "cfg": 1.0},
        "LAMP_DDIMInversion": {"steps": toy.steps},
        "LAMP_Scheduler": {"steps": toy.steps},
        "CFGGuider": {"cfg": 1.0},
    }
    if kind == "LAMP_Trainer":
        return {**toy.training, "steps": toy.training["steps"] * inputs["steps"] // 1000}
    return shared.get(kind, {})


def _feed_clips(prompt: Prompt, toy: Toy) -> None:
    """A folder of clips becomes the toy's clips."""
    for node in list(prompt.values()):
        folder = node["inputs"].get("folder", "(from images)")
        if node["class_type"] == "LAMP_TrainingClips" and folder != "(from images)":
            world = {"seed": 0, "clips": 8, "motion": toy.motion_kind}
            prompt["toy_clips"] = {"class_type": "LAMP_ToyClips", "inputs": world}
            made = {"images": ["toy_clips", 0], "prompt": ["toy_clips", 1]}
            node["inputs"] |= {"folder": "(from images)", **made}


def _keep_rate(prompt: Prompt) -> None:
    """Trainers of a training in stages get a recipe that can go on."""
    trainers = [node["inputs"] for node in prompt.values() if node["class_type"] == "LAMP_Trainer"]
    if any(inputs["resume"] != "none" for inputs in trainers):
        prompt["toy_recipe"] = {"class_type": "LAMP_TrainingRecipe", "inputs": dict(_STAGES)}
        for inputs in trainers:
            inputs["own_recipe"] = ["toy_recipe", 0]


def _without_left_out(prompt: Prompt) -> Prompt:
    """Links past the nodes that are left out; inputs that nothing feeds any more are dropped."""
    gone = {key for key, node in prompt.items() if node["class_type"] in LEFT_OUT}
    kept = {key: node for key, node in prompt.items() if key not in gone}
    for node in kept.values():
        for name, value in list(node["inputs"].items()):
            while isinstance(value, list) and value[0] in gone:
                source = prompt[value[0]]
                passed = LEFT_OUT[source["class_type"]].get(value[1])
                value = source["inputs"][passed] if passed else None
            if value is None:
                del node["inputs"][name]
            else:
                node["inputs"][name] = value
    return kept
