"""LAMP Video Metrics with ComfyUI's CLIP and CLIP_VISION, against the CLIP of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.samples.clip_files import sliding
from lamp.errors import IncompatibleModelError, LampError
from lamp.metrics import (
    background_stability,
    diversity,
    frame_consistency,
    motion_amount,
    text_alignment,
)
from tests.helpers.tiny_clip import (
    SIZE,
    comfy_text,
    comfy_vision,
    image_features,
    teach_colours,
    text_features,
    tiny_clip,
)

Nodes = dict[str, Any]
NAMES = ["text_alignment", "frame_consistency", "diversity", "motion", "background"]


@pytest.fixture(scope="module")
def tokenizer(comfy: ModuleType) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(Path(comfy.__path__[0]) / "sd1_tokenizer")


@pytest.fixture(scope="module")
def whole(tokenizer: Any) -> Any:
    return teach_colours(tiny_clip(), tokenizer)


@pytest.fixture(scope="module")
def vision(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return comfy_vision(whole, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(whole: Any) -> Any:
    return comfy_text(whole)


def videos(count: int, frames: int = 5) -> list[Tensor]:
    return [sliding(frames, 2, SIZE, SIZE, seed=seed) for seed in range(count)]


def measured(
    nodes: Nodes, images: list[Tensor], prompt: str | list[str] = "", frames: int = 0, **parts: Any
) -> dict[str, Any]:
    prompts = [prompt] if isinstance(prompt, str) else prompt
    given = {name: [part] for name, part in parts.items()}
    with torch.inference_mode():
        out = nodes["LAMP_VideoMetrics"].execute(images, prompts, [frames], **given)
    return dict(zip([*NAMES, "report"], out.result, strict=True))


def test_the_papers_metrics_equal_those_of_the_whole_clip(
    node_classes: Nodes, whole: Any, tokenizer: Any, vision: Any, clip: Any
) -> None:
    pytest.importorskip("cv2")
    given = videos(3)
    prompts = ["a horse runs", "(a red) horse, it runs", "x " * 100]
    found = measured(node_classes, given, prompts, clip_vision=vision, clip=clip)
    seen = [image_features(whole, video) for video in given]
    # Brackets are the host's syntax for weights, not part of the text.
    plain = ["a horse runs", "a red horse, it runs", "x " * 75]
    said = text_features(whole, tokenizer, plain)
    expected = {
        "text_alignment": [text_alignment(s, t) for s, t in zip(seen, said, strict=True)],
        "frame_consistency": [frame_consistency(s) for s in seen],
        "diversity": [diversity(seen)],
        "motion": [motion_amount(video) for video in given],
        "background": [background_stability(video) for video in given],
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(sum(values) / len(values), abs=1e-3), name
    assert len({round(value) for value in expected["text_alignment"]}) > 1
    assert found["report"].splitlines()[3].startswith("mean: text alignment ")


def test_several_videos_are_a_list_or_one_batch(node_classes: Nodes, vision: Any) -> None:
    given = videos(3, frames=4)
    listed = measured(node_classes, given, clip_vision=vision)
    batched = measured(node_classes, [torch.cat(given)], frames=4, clip_vision=vision)
    for name in NAMES[1:]:
        assert listed[name] == batched[name]
    assert listed["report"] == batched["report"]
    alone = measured(node_classes, [torch.cat(given)], clip_vision=vision)
    assert alone["report"].startswith("video 1: ") and "video 2" not in alone["report"]
    with pytest.raises(LampError, match=r"12 .*\(5\)"):
        measured(node_classes, [torch.cat(given)], frames=5)


def test_images_of_any_size_are_cropped_to_the_middle(
    node_classes: Nodes, whole: Any, vision: Any
) -> None:
    wide = [sliding(4, 3, 2 * SIZE, SIZE, seed=seed) for seed in range(2)]
    middle = [video[:, :, SIZE // 2 : -SIZE // 2] for video in wide]
    found = measured(node_classes, wide, clip_vision=vision)
    expected = diversity([image_features(whole, video) for video in middle])
    assert found["diversity"] == pytest.approx(expected, abs=1e-3)


def test_without_clip_only_the_flow_metrics_are_computed(node_classes: Nodes, clip: Any) -> None:
    pytest.importorskip("cv2")
    from comfy_execution.graph_utils import ExecutionBlocker

    video = videos(1)[0]
    for parts in ({}, {"clip": clip}):
        found = measured(node_classes, [video], "a horse", **parts)
        assert found["motion"] == motion_amount(video)
        assert found["background"] == background_stability(video)
        blocked = [found[name] for name in NAMES[:3]]
        assert all(isinstance(value, ExecutionBlocker) for value in blocked)
        missing = found["report"].splitlines()[1:]
        assert blocked[0].message in missing and blocked[1].message in missing
        assert all("CLIP" in line for line in missing)


def test_the_clip_is_left_unchanged(node_classes: Nodes, vision: Any, clip: Any) -> None:
    """The projection is switched on in the CLIP itself, which other nodes share."""
    tokens = clip.tokenize("a horse")
    with torch.inference_mode():
        before = clip.encode_from_tokens(tokens, return_pooled=True)
        measured(node_classes, videos(1), "a horse", clip_vision=vision, clip=clip)
        assert clip.cond_stage_model.clip_l.return_projected_pooled is False
        after = clip.encode_from_tokens(tokens, return_pooled=True)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_encoders_of_different_width_are_refused(
    node_classes: Nodes,
    vision: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import folder_paths

    # Users may keep their models elsewhere: the message names the folders that the host searches.
    for kind in ("text_encoders", "clip_vision"):
        folders = ([str(tmp_path / kind)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, folders)
    other = comfy_text(tiny_clip(48))
    with pytest.raises(
        IncompatibleModelError,
        match=r"^LAMP Video Metrics: .*clip_vision.*32.*48 \(clip_l\).*model.safetensors",
    ) as caught:
        measured(node_classes, videos(1), "a horse", clip_vision=vision, clip=other)
    assert f"{tmp_path / 'text_encoders'} " in str(caught.value)
    assert f"{tmp_path / 'clip_vision'} " in str(caught.value)


@pytest.mark.parametrize("projection", ["another model's", "none", "nan"])
def test_a_clip_without_its_projection_is_refused(
    node_classes: Nodes, whole: Any, vision: Any, projection: str
) -> None:
    """The projection of a checkpoint's CLIP is uninitialised memory."""
    clip = comfy_text(whole)
    memory = {
        "another model's": tiny_clip(seed=5).text_projection.weight,
        "none": torch.zeros(32, 32),
        "nan": torch.full((32, 32), float("nan")),
    }[projection]
    clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.copy_(memory)
    with pytest.raises(IncompatibleModelError, match="clip and clip_vision .* 6 "):
        measured(node_classes, videos(1), "a horse", clip_vision=vision, clip=clip)


def test_other_image_encoders_are_refused(node_classes: Nodes, whole: Any, tmp_path: Path) -> None:
    from comfy.clip_vision import ClipVisionModel

    comfy_vision(whole, tmp_path)
    file = tmp_path / "vision.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["projection_dim"]
    file.write_text(json.dumps({**config, "model_type": "siglip_vision_model"}), encoding="utf-8")
    with pytest.raises(IncompatibleModelError, match="clip_vision.*SigLIP"):
        measured(node_classes, videos(1), clip_vision=ClipVisionModel(str(file)))
