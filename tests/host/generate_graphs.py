"""Graphs that load the tiny model, give it a motion and sample it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.server.server import ComfyServer

Graph = dict[str, dict[str, Any]]
STEPS = 3


def node(kind: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def motions(server: ComfyServer) -> Path:
    return server.base / "models" / "lamp_motion"


def base(motion: str, **latent: Any) -> Graph:
    """The tiny model with a motion, prompts and a latent."""
    latent = {"frames": 6, "channels": 4, "value": 0.0, "nan": False, **latent}
    return {
        "model": node("TinyModel", text_width=32, seed=0),
        "load": node(
            "LAMP_LoadMotion",
            model=["model", 0],
            motion_name=motion,
            strength=1.0,
            alpha=0.2,
            start_percent=0.0,
            end_percent=1.0,
        ),
        "latent": node("TinyLatent", **latent),
    }


def ksampler(**changes: Any) -> dict[str, Any]:
    settings = {
        "model": ["load", 0],
        "positive": ["model", 1],
        "negative": ["model", 1],
        "latent": ["latent", 0],
        "seed": 7,
        "steps": STEPS,
        "cfg": 5.0,
        "sampler_name": "ddim",
        "scheduler": "ddim (official)",
        "adain": "paper",
        "denoise": 1.0,
        **changes,
    }
    return node("LAMP_KSampler", **settings)


def stock(**changes: Any) -> dict[str, Any]:
    settings = {
        "model": ["load", 0],
        "positive": ["model", 1],
        "negative": ["model", 1],
        "latent_image": ["latent", 0],
        "seed": 7,
        "steps": STEPS,
        "cfg": 5.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        **changes,
    }
    return node("KSampler", **settings)


def looking(sampler: str = "sample") -> Graph:
    return {
        "look": node("LookAtLatent", latent=[sampler, 0], given=["latent", 0]),
        "hooks": node("CountHooks", model=["model", 0]),
    }
