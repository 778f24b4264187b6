"""The reference figures: files found in a folder, told apart by what they hold, and distances.

A fixture is `NAME.safetensors` with `NAME.json` beside it. Videos are `b c f h w` in it, as in the
official code; this project lays frames in the batch, `(b f) c h w`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

MODEL = "model"


class Unmeasured(Exception):
    """A fixture that cannot be compared here; the message says why. It counts neither way."""


@dataclass(frozen=True)
class Measure:
    """One comparison: how far off, how far off it may be, and what was the worst of it."""

    name: str
    error: float
    bound: float
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.error <= self.bound  # false for NaN

    @property
    def ratio(self) -> float:
        """How much of the bound is used; byte-exact comparisons have the bound 0."""
        if self.error != self.error:
            return float("inf")
        return self.error / self.bound if self.bound else self.error


@dataclass(frozen=True)
class Fixture:
    """One file of reference figures."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def info(self) -> dict[str, Any]:
        beside = self.path.with_suffix(".json")
        return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.path)

    @cached_property
    def keys(self) -> set[str]:
        with safe_open(self.path, framework="pt") as file:
            return set(file.keys())

    @property
    def kind(self) -> str:
        """What the file holds; '' if nothing known. Names are free, contents are not."""
        if "conv_in.conv2d.weight" in self.keys:
            return MODEL
        for kind, sign in (
            ("inversion", "video_latent"),
            ("train_main", "latents.0"),
            ("sample", "final"),
            ("train", "noisy_latents"),
            ("first_frame", "source_bgr_u8"),
            ("dataset", "raw_u8"),
        ):
            if sign in self.keys:
                return kind
        for kind, part in (
            ("units", ".sd."),
            ("adain", ".style"),
            ("histogram", ".out_u8"),
            ("forward", ".latents"),
        ):
            if any(part in key for key in self.keys):
                return kind
        return ""

    @property
    def model_path(self) -> Path:
        """The file of the model that these figures are about.

        Raises:
            Unmeasured: it is not in the folder.
        """
        name = Path(self.info.get("model", "")).name  # a name, wherever it points
        if not name:
            raise Unmeasured("the .json file beside it does not name its model")
        if not (path := self.path.with_name(name)).is_file():
            raise Unmeasured(f"its model {name} is not in the folder")
        return path

    def prefixed(self, prefix: str) -> dict[str, Tensor]:
        """The tensors `PREFIX.rest` by their rest."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def find_fixtures(folder: Path) -> list[Fixture]:
    """All fixtures of a folder."""
    return [Fixture(path) for path in sorted(folder.glob("*.safetensors"))]


def split_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take an official LAMP UNet apart: (image UNet, motion), both in canonical names.

    The official UNet holds the tuned queries in place of the image model's, so the motion's query
    deltas are zero against the image UNet returned here.
    """
    base, learned = {}, {}
    for key, tensor in state.items():
        if any(f".{part}." in key for part in ("conv1d", "conv_gate", "attn_temp", "norm_temp")):
            learned[key] = tensor
        else:
            base[key.replace(".conv2d.", ".")] = tensor
            if key.endswith(".attn1.to_q.weight"):
                learned[key] = torch.zeros_like(tensor)
    return base, learned


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Distance in units of the reference's norm (plain distance from a reference of zeros)."""
    difference, theirs = _difference(ours, theirs)
    norm = theirs.norm().item()
    return difference.norm().item() / (norm or 1.0)


def of_scale(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference in units of the reference's largest value."""
    difference, theirs = _difference(ours, theirs)
    return difference.abs().max().item() / (theirs.abs().max().item() or 1.0)


def largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference."""
    return _difference(ours, theirs)[0].abs().max().item()


def _difference(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {tuple(ours.shape)}, reference {tuple(theirs.shape)}")
    ours, theirs = ours.detach().cpu().double(), theirs.double()
    return ours - theirs, theirs


def worst_of(name: str, errors: dict[str, float], bound: float) -> Measure:
    """The worst of several comparisons under one bound; a NaN is the worst of all."""
    key = max(errors, key=lambda k: float("inf") if errors[k] != errors[k] else errors[k])
    return Measure(name, errors[key], bound, f"worst of {len(errors)}: {key}")


def to_frames(video: Tensor) -> Tensor:
    """`b c f h w` -> `(b f) c h w`."""
    return video.transpose(1, 2).flatten(0, 1)


def to_video(frames: Tensor, videos: int) -> Tensor:
    """`(b f) c h w` -> `b c f h w`."""
    return frames.unflatten(0, (videos, -1)).transpose(1, 2)


def expand(text: Tensor, videos: int) -> Tensor:
    """One text embedding for each video."""
    return text.expand(videos, -1, -1) if len(text) == 1 else text


def each_video(timesteps: Tensor, videos: int) -> Tensor:
    """One timestep for each video, from a scalar or a vector."""
    return timesteps.reshape(-1).expand(videos) if timesteps.numel() == 1 else timesteps
