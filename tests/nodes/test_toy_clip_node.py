"""Load LAMP Toy CLIP: ComfyUI's CLIP of the toy world is that of transformers, and knows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.table1.clip_training import retrieval
from benchmarks.table1.worlds import WORLDS
from lamp.metrics import diversity, frame_consistency, text_alignment
from lamp.toy.cases import evaluation_cases
from lamp.toy.clip import PATH, load_toy_clip

Nodes = dict[str, Any]


def measured(nodes: Nodes, cases: list[Any], prompts: list[str]) -> Any:
    vision, clip = nodes["LAMP_LoadToyClip"].execute().result
    videos = [torch.from_numpy(case.frames) / 255.0 for case in cases]
    given = {"clip_vision": [vision], "clip": [clip]}
    with torch.inference_mode():
        return nodes["LAMP_VideoMetrics"].execute(videos, prompts, [0], **given).result


def test_the_metrics_in_comfyui_are_those_of_the_toy_clip(node_classes: Nodes) -> None:
    pytest.importorskip("cv2")
    cases = evaluation_cases(0, "combination", "moves_right", count=2)
    prompts = [case.prompt for case in cases]
    found, clip = measured(node_classes, cases, prompts), load_toy_clip()
    seen = [clip.encode_image(torch.from_numpy(case.frames) / 255.0) for case in cases]
    read = [clip.encode_text(prompt) for prompt in prompts]
    alignment = np.mean([text_alignment(s, r) for s, r in zip(seen, read, strict=True)])
    assert found[0] == pytest.approx(float(alignment), abs=0.02)
    assert found[1] == pytest.approx(np.mean([frame_consistency(s) for s in seen]), abs=0.02)
    assert found[2] == pytest.approx(diversity(seen), abs=0.02)
    swapped = measured(node_classes, cases, prompts[::-1])
    assert swapped[0] < found[0] - 5.0


def test_the_bundled_clip_matches_pictures_and_captions() -> None:
    found = retrieval(load_toy_clip(), WORLDS["sprites"], count=64, seed=5)
    assert found["image_to_text"] > 0.8 and found["text_to_image"] > 0.8
    assert PATH.stat().st_size <= 1_000_000
