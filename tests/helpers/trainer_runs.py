"""LAMP Trainer in this process: the toy base's VAE and text encoder, a tiny UNet, two clips."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.tiny_models import tiny_patcher
from lamp.clips.load import clips_from_images
from lamp.motion_file.file import load_motion_file

HIDDEN = SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
SETTINGS: dict[str, Any] = {
    "recipe": "fast", "steps": 2, "batch": 1, "accumulate": 1, "seed": 0, "precision": "fp32",
    "checkpointing": "off", "optimizer": "adamw", "hold_out": 0, "save_every": 1,
    "keep_states": 2, "sample_every": 2, "sample_cfg": 1.0,
}  # fmt: skip
_TEXT = 64  # numbers a token of the toy's text encoder


def pictures(count: int, size: int = 32) -> Tensor:
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(count))


class TrainerRuns:
    """Runs of the node in a folder of their own, with a sample after the last step."""

    def __init__(
        self, nodes: dict[str, Any], toy: Any, folder: Path, patch: pytest.MonkeyPatch
    ) -> None:
        import folder_paths

        from lamp.hosts.comfy import memory as comfy_memory
        from lamp.training import samples

        self._node, self.folder = nodes["LAMP_Trainer"], folder
        self.model, (_, self.clip, self.vae) = tiny_patcher(_TEXT), toy
        self._clips = clips_from_images([pictures(4), pictures(5)], "moves", 3, 32, 32)
        patch.setattr(self._node, "hidden", HIDDEN)
        patch.setattr(folder_paths, "get_output_directory", lambda: str(folder / "output"))
        patch.setattr(folder_paths, "user_directory", str(folder / "user"))
        motions = ([str(folder / "motions")], {".safetensors"})
        patch.setitem(folder_paths.folder_names_and_paths, "lamp_motion", motions)
        # These two take long, and are tried elsewhere.
        patch.setattr(comfy_memory, "plan_memory", lambda *given: given[2])
        patch.setattr(samples, "sample_clip", functools.partial(samples.sample_clip, steps=3))

    def run(self, name: str, resume: str = "none") -> Any:
        """The node's output."""
        return self._node.execute(
            self.model, self.clip, self.vae, self._clips, name=name, resume=resume, **SETTINGS
        )

    def train(self, name: str, resume: str = "none") -> dict[str, Tensor]:
        """What was learned, as it is in the file."""
        return load_motion_file(Path(self.run(name, resume).result[3])).state

    def starting(self, name: str, resume: str = "none") -> Callable[[], dict[str, Tensor]]:
        """The same, to be called later."""
        return functools.partial(self.train, name, resume)

    def check_whole(self) -> None:
        """Nothing is half-written."""
        assert not list(self.folder.rglob("*.part"))
        for path in (self.folder / "motions").glob("*.safetensors"):
            load_motion_file(path)
