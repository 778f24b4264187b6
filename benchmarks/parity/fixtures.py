"""Reference figures: files of a folder, classified by content, and distances to them.

A fixture is `NAME.safetensors` with an optional `NAME.json`. Videos in it are `b c f h w`, as in
the official code; this project puts frames into the batch, `(b f) c h w`.
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

# A file is of the first kind of which it has the key, or else a key with the part.
_KEYS = {"conv_in.conv2d.weight": "model", "video_latent": "inversion", "latents.0": "train_main",
         "final": "sample", "noisy_latents": "train", "source_bgr_u8": "first_frame",
         "raw_u8": "dataset"}  # fmt: skip
_PARTS = {".sd.": "units", ".style": "adain", ".out_u8": "histogram", ".latents": "forward"}


class Unmeasured(Exception):
    """A fixture that cannot be compared here; it counts neither as passed nor as failed."""


@dataclass(frozen=True)
class Measure:
    """One comparison: its error, the allowed error, and which figure was the worst."""

    name: str
    error: float
    bound: float
    detail: str = ""

    @property
    def holds(self) -> bool:
        return self.error <= self.bound  # false for NaN

    @property
    def ratio(self) -> float:
        """Error in units of the bound; exact comparisons have the bound 0."""
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
        """What the file holds, '' if unknown. File names are free."""
        found = [kind for key, kind in _KEYS.items() if key in self.keys]
        found += [kind for part, kind in _PARTS.items() if any(part in key for key in self.keys)]
        return found[0] if found else ""

    @property
    def model_path(self) -> Path:
        """The file of the model that made these figures.

        Raises:
            Unmeasured: it is not in the folder.
        """
        name = Path(self.info.get("model", "")).name  # the folder in it does not count
        if not name:
            raise Unmeasured("the .json file beside it does not name its model")
        if not (path := self.path.with_name(name)).is_file():
            raise Unmeasured(f"its model {name} is not in the folder")
        return path

    def prefixed(self, prefix: str) -> dict[str, Tensor]:
        """The tensors `PREFIX.rest`, keyed by the rest."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def cases(self, end: str) -> list[str]:
        """The sorted names `NAME` of all keys `NAME.end`."""
        return sorted(key.removesuffix(end) for key in self.keys if key.endswith(end))


def find_fixtures(folder: Path) -> list[Fixture]:
    """All fixtures of a folder."""
    return [Fixture(path) for path in sorted(folder.glob("*.safetensors"))]


def split_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an official LAMP UNet into (image UNet, motion), both in canonical names.

    The official UNet stores the tuned queries in place of the image model's, so the query deltas
    of the motion are zero relative to the image UNet returned here.
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
    """Norm of the difference over the norm of the reference (over 1 if that is zero)."""
    difference, theirs = _difference(ours, theirs)
    return difference.norm().item() / (theirs.norm().item() or 1.0)


def of_scale(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value of the reference."""
    difference, theirs = _difference(ours, theirs)
    return difference.abs().max().item() / (theirs.abs().max().item() or 1.0)


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference."""
    return _difference(ours, theirs)[0].abs().max().item()


def _difference(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    if ours.shape != theirs.shape:
        raise ValueError(f"shape {tuple(ours.shape)}, reference {tuple(theirs.shape)}")
    ours, theirs = ours.detach().cpu().double(), theirs.double()
    return ours - theirs, theirs


def worst_of(name: str, errors: dict[str, float], bound: float) -> Measure:
    """The largest of several errors under one bound; NaN is larger than any."""
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
