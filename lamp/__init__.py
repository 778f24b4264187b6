"""LAMP: learn a motion pattern from a few clips and apply it to any first frame.

The public functions, on the toy model that comes with the package (`load_image_model` also takes a
diffusers folder or a .safetensors checkpoint of SD 1.x)::

    from pathlib import Path

    from lamp import Motion, load_clips, load_motion_file, sample, save_motion, train
    from lamp.hosts.diffusers.models import decode, load_image_model
    from lamp.hosts.diffusers.unet import DiffusersHost
    from lamp.method.architecture import map_unet
    from lamp.method.noise import draw_noise, share_noise
    from lamp.motion_file.config import MotionConfig
    from lamp.training.latents import cache_latents
    from lamp.training.recipe import TrainConfig

    model = load_image_model("toy")
    host, sites = DiffusersHost(model.unet), map_unet(model.unet)

    clips = load_clips("clips", "moves right", frames=8, width=32, height=32)
    latents = cache_latents(clips, model.encode_posterior, model.encode_prompts)
    motion = Motion(sites).initialise(seed=0)
    train(host, motion, latents, TrainConfig(steps=500, frames=8))
    save_motion(Path("right.safetensors"), motion.state_dict(), MotionConfig(sites.family))

    motion.load_state_dict(load_motion_file(Path("right.safetensors")).state)
    first = latents.posteriors[0].mean[:1] * latents.scale
    noise = share_noise(draw_noise(8, *first.shape[1:], seed=0))
    text, empty = latents.text["moves right"], latents.text[""]
    video = decode(model.vae, sample(host, motion, first, noise, text, empty, steps=20))

Tensors: video latents are `(b f) c h w`, with the frames in the batch dimension; images and clips
are `f h w c`, as ComfyUI's IMAGE. Messages count frames from 1.

`import lamp` is cheap: PyTorch is imported with the first function that is used. Only `lamp.hosts`
imports ComfyUI or diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clips.load import load_clips
    from .method.motion import Motion
    from .method.sampling import sample
    from .motion_file.file import load_motion_file, save_motion
    from .training.loop import train

__all__ = ["Motion", "load_clips", "load_motion_file", "sample", "save_motion", "train"]

_MODULES = {
    "Motion": "method.motion",
    "load_clips": "clips.load",
    "load_motion_file": "motion_file.file",
    "sample": "method.sampling",
    "save_motion": "motion_file.file",
    "train": "training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
