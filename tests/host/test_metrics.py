"""LAMP Video Metrics in the real server: a list of videos, and metrics without their models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lamp.metrics import background_stability, motion_amount
from lamp.toy.cases import training_clips
from scripts.server.server import ComfyServer
from tests.host.generate_graphs import Graph, node


def measuring(output: int) -> Graph:
    """Four toy clips, their metrics, and a node that uses one of them."""
    return {
        "clips": node("LAMP_ToyClips", seed=0, clips=4, motion="moves_right"),
        "metrics": node("LAMP_VideoMetrics", images=["clips", 0], prompt=["clips", 1], frames=0),
        "wants": node("PreviewAny", source=["metrics", output]),
    }


def test_a_list_of_videos_is_measured_together(server: ComfyServer) -> None:
    pytest.importorskip("cv2")
    result = server.queue(measuring(output=3)).check()
    clips = training_clips(0, "moves_right", 4).frames
    found = [(motion_amount(clip), background_stability(clip)) for clip in map(as_video, clips)]
    mean = [sum(values) / 4 for values in zip(*found, strict=True)]
    assert float(result.outputs["wants"]["text"][0]) == pytest.approx(mean[0])
    lines = result.outputs["metrics"]["text"][0].splitlines()
    assert lines[0] == f"video 1: motion {found[0][0]:.2f} px, background {found[0][1]:.1f} dB"
    assert lines[4] == f"mean: motion {mean[0]:.2f} px, background {mean[1]:.1f} dB"
    assert lines[5:] == [
        "Frame consistency and diversity need CLIP's image encoder.",
        "Text alignment needs CLIP's image and text encoder.",
    ]


def test_a_missing_metric_blocks_connected_nodes_with_the_reason(server: ComfyServer) -> None:
    result = server.queue(measuring(output=0))
    assert result.error is not None
    assert result.error.message.endswith("Text alignment needs CLIP's image and text encoder.")
    assert "video 1: motion" in result.outputs["metrics"]["text"][0]
    assert "wants" not in result.outputs


def as_video(clip: Any) -> torch.Tensor:
    return torch.from_numpy(clip)
