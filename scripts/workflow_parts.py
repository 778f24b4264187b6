"""Pieces that the bundled workflows share."""

from __future__ import annotations

from typing import Any

from scripts.workflow_format import Group, Node, Note, Out

BLUE, GREEN, ORANGE, GREY = "#3f789e", "#5a8a5a", "#b06634", "#888888"
TEXT = (400, 140)


def encode(key: str, text: Any, clip: Out, title: str) -> Node:
    return Node(key, "CLIPTextEncode", {"text": text, "clip": clip}, title, size=TEXT)


def sample(model: Out, after: str = "randomize", **settings: Any) -> Node:
    inputs = {
        "model": model,
        "positive": Out("positive", "CONDITIONING"),
        "negative": Out("negative", "CONDITIONING"),
        "latent": Out("condition", "latent"),
        **settings,
    }
    return Node("sample", "LAMP_KSampler", inputs, after=after)


def decode(key: str, samples: Out, vae: Out) -> Node:
    return Node(key, "VAEDecode", {"samples": samples, "vae": vae})


def video(images: Out, fps: float, prefix: str) -> list[Node]:
    """Create Video and Save Video."""
    saved = {"video": Out("video", "VIDEO"), "filename_prefix": prefix}
    return [
        Node("video", "CreateVideo", {"images": images, "fps": fps}),
        Node("save", "SaveVideo", saved, size=(400, 420)),
    ]


def read_me(text: str, size: tuple[int, int]) -> Group:
    return Group("Read me", GREY, [[Note(text, size)]])
