"""Toy clips on the disk, and a config file that trains on them in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lamp.toy.cases import training_clips
from lamp.training.memory import estimate

CONFIG = """
[base]
path = "toy"
[data]
folder = "clips"
prompt = "moves right"
frames = 4
width = 32
height = 32
[recipe]
steps = 3
learning_rate = 2e-3
seed = 5
checkpointing = "off"
[output]
name = "right"
sample_every = 0
"""


@contextmanager
def same_plans_once() -> Iterator[None]:
    """Runs of one shape need the same memory, which is traced once here: every trace takes longer
    than a run of three steps."""
    traces: dict[Any, Any] = {}
    trace_step = estimate.trace_step

    def traced(host: Any, motion: Any, plan: Any) -> Any:
        dtypes = {parameter.dtype for parameter in host.unet.parameters()}
        key = str(host.unet), frozenset(dtypes), str(motion), plan
        if key not in traces:
            traces[key] = trace_step(host, motion, plan)
        return traces[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "trace_step", traced)
        yield


def write_clips(folder: Path, count: int = 3) -> Path:
    """Folders of pictures, which lose nothing, with captions beside them."""
    clips = training_clips(0)
    for number in range(count):
        (folder / f"clip{number}").mkdir(parents=True)
        for place, frame in enumerate(clips.frames[number]):
            Image.fromarray(frame).save(folder / f"clip{number}" / f"{place:03}.png")
        caption = f"{clips.captions[number]} {{motion}}"
        (folder / f"clip{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def write_config(folder: Path) -> Path:
    write_clips(folder / "clips")
    path = folder / "run.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path
