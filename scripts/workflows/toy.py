"""A bundled workflow on the toy base: the same graph where no checkpoint is installed.

The toy base replaces checkpoints, an object of the toy world replaces the user's picture or clip,
and the motion that comes with the pack replaces the user's. LoRA and ControlNet loaders have no
toy counterpart and are left out, and with them the nodes that feed nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.workflows.convert import Prompt

KIND = "horse"
MOTION = f"toy_{KIND}.safetensors"
CAPTION = "a filled purple horse near mountains at noon runs"  # of the toy object 0
_OTHER_LOOK = 14  # number of an object that CAPTION does not describe
TRAINING = {
    "recipe": "fast",
    "steps": 300,
    "batch": 2,
    "precision": "fp32",
    "checkpointing": "off",
    "sample_every": 100,
    "sample_cfg": 1.0,
}
STEPS = 20
FRAMES = 8
SIDE = 64
_SIZE = {"width": SIDE, "height": SIDE}
_WORLD = {"world": "scenes"}
_OBJECT = {"seed": 0, "unseen": "combination", "number": 0, "motion": KIND}
_REPLACED: dict[str, tuple[str, dict[str, Any]]] = {
    "CheckpointLoaderSimple": ("LAMP_LoadToyBase", _WORLD),
    "LoadImage": ("LAMP_ToyObject", _OBJECT),
    "LoadVideo": ("LAMP_ToyObject", _OBJECT),
    "CLIPVisionLoader": ("LAMP_LoadToyClip", _WORLD),
}
_OBJECTS = ("LoadImage", "LoadVideo")
_PROMPT = "PrimitiveStringMultiline"
_PROMPT_SLOT, _TRUTH_SLOT = 1, 2  # outputs of LAMP_ToyObject; slot 0 is the first frame
_TEXT_SLOT = 1  # of LAMP_LoadToyClip; slot 0 is the image encoder
# Output slot -> the input that the link is passed to, or a constant.
LEFT_OUT: dict[str, dict[int, Any]] = {
    "LoraLoaderModelOnly": {0: "model"},
    "ControlNetApplyAdvanced": {0: "positive", 1: "negative"},
    "GetVideoComponents": {0: "video", 2: 6.0},
    "ControlNetLoader": {},
    "CLIPLoader": {},
    # Chosen for a card and Stable Diffusion.
    "LAMP_TrainingPreset": {1: SIDE, 2: SIDE, 3: FRAMES},
}


def on_toy(prompt: Prompt) -> Prompt:
    """The API prompt with the toy's models, files and sizes; nodes keep their ids."""
    objects = [key for key, node in prompt.items() if node["class_type"] in _OBJECTS]
    caption: Any = [objects[0], _PROMPT_SLOT] if objects else CAPTION
    looks = _new_looks(prompt)
    # Prompts that become that of the object.
    words = _nodes(prompt, _PROMPT) - looks if objects else set()
    made: Prompt = {}
    for key, node in prompt.items():
        kind = node["class_type"]
        if kind in LEFT_OUT or key in words:
            continue
        sources = {name: _source(of, prompt, caption, words) for name, of in node["inputs"].items()}
        inputs = {name: value for name, value in sources.items() if value is not None}
        if kind in _REPLACED:
            kind, inputs = _REPLACED[kind]
            other = {"number": _OTHER_LOOK} if kind == "LAMP_ToyObject" and looks else {}
            made[key] = {"class_type": kind, "inputs": inputs | other}
        else:
            made[key] = {**node, "inputs": inputs | _settings(node, inputs, caption)}
    _leave_out_unused(made, _used(prompt))
    _feed_clips(made)
    return made


def _new_looks(prompt: Prompt) -> set[str]:
    """Prompts that describe a new look of a clip, where another one describes the clip."""
    prompts = _nodes(prompt, _PROMPT)
    clips = [node for node in prompt.values() if node["class_type"] == "LAMP_TrainingClips"]
    of_clips = {node["inputs"]["prompt"][0] for node in clips if _linked(node, "prompt")} & prompts
    return prompts - of_clips if of_clips else set()


def _nodes(prompt: Prompt, kind: str) -> set[str]:
    return {key for key, node in prompt.items() if node["class_type"] == kind}


def _linked(node: Mapping[str, Any], name: str) -> bool:
    return isinstance(node["inputs"].get(name), list)


def _used(prompt: Prompt) -> set[str]:
    """Nodes that feed another one."""
    return {
        node["inputs"][name][0]
        for node in prompt.values()
        for name in node["inputs"]
        if _linked(node, name)
    }


def _leave_out_unused(prompt: Prompt, used: set[str]) -> None:
    """Remove nodes that fed others before, and feed none any more."""
    while unused := used & set(prompt) - _used(prompt):
        for key in unused:
            del prompt[key]


def _source(value: Any, prompt: Prompt, caption: Any, words: set[str]) -> Any:
    """Where an input comes from on the toy; None if nothing feeds it any more. `words` are prompts
    that become the caption."""
    while isinstance(value, list):
        if value[0] in words:
            return caption
        node = prompt[value[0]]
        kind = node["class_type"]
        if kind == "LoadVideo":
            return [value[0], _TRUTH_SLOT]
        if kind == "CLIPLoader":  # one node loads both halves of the toy's CLIP
            return [_find(prompt, "CLIPVisionLoader"), _TEXT_SLOT]
        if kind not in LEFT_OUT:
            return value
        passed = LEFT_OUT[kind].get(value[1])
        value = node["inputs"][passed] if isinstance(passed, str) else passed
    return value


def _find(prompt: Prompt, kind: str) -> str:
    return next(key for key, node in prompt.items() if node["class_type"] == kind)


def _settings(node: Mapping[str, Any], inputs: Mapping[str, Any], caption: Any) -> dict[str, Any]:
    """The toy's values for the widgets that the node has and that no link feeds."""
    negative = "egative" in node["_meta"]["title"]
    values: dict[str, dict[str, Any]] = {
        "CLIPTextEncode": {"text": caption if inputs.get("text") and not negative else ""},
        _PROMPT: {"value": CAPTION},
        "LAMP_LoadMotion": {"motion_name": MOTION},
        # The toy's latents have 16 x 16 places; this node counts eight pixels for each.
        "EmptyLatentImage": {"width": 128, "height": 128},
        "ImageScale": _SIZE,
        "ImageFromBatch": {"length": min(FRAMES, inputs.get("length", FRAMES))},
        # A video that is longer than what was trained stays as many times longer.
        "LAMP_FirstFrameCondition": {**_SIZE, "frames": inputs.get("frames", 16) * FRAMES // 16},
        "LAMP_AnchoredWindows": {"length": FRAMES, "overlap": 2},
        "LAMP_TrainingClips": {**_SIZE, "frames": FRAMES, "prompt": caption},
        "LAMP_VideoMetrics": {"frames": FRAMES},
        "LAMP_ExtendVideo": {"frames": FRAMES, "steps": STEPS, "cfg": 1.0},
        "LAMP_KSampler": {"steps": STEPS, "cfg": 1.0},
        "LAMP_DDIMInversion": {"steps": STEPS},
        "LAMP_Scheduler": {"steps": STEPS},
        "CFGGuider": {"cfg": 1.0},
    }
    found = values.get(node["class_type"], {})
    if node["class_type"] == "LAMP_Trainer":
        found = TRAINING | {"steps": TRAINING["steps"] * inputs["steps"] // 1000}
    return {name: v for name, v in found.items() if not isinstance(inputs.get(name, []), list)}


def _feed_clips(prompt: Prompt) -> None:
    """A folder of clips becomes the toy's clips."""
    for node in list(prompt.values()):
        if node["class_type"] == "LAMP_TrainingClips" and "images" not in node["inputs"]:
            chosen = {"seed": 0, "clips": 8, "motion": KIND}
            prompt["toy_clips"] = {"class_type": "LAMP_ToyClips", "inputs": chosen}
            fed = {"images": ["toy_clips", 0], "prompt": ["toy_clips", 1]}
            node["inputs"] |= {"folder": "(from images)", **fed}
