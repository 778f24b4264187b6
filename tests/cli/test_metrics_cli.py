"""`python -m lamp metrics`: whole CLIP models from folders, the table, the JSON, the mistakes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.samples.clip_files import sliding, write_video
from lamp.cli import main
from lamp.metrics import (
    background_stability,
    diversity,
    frame_consistency,
    motion_amount,
    text_alignment,
    video_similarity,
)
from tests.helpers.tiny_clip import SIZE, image_features, normalised, text_features, tiny_clip

PROMPTS = ["a horse runs", "rain falls"]


@pytest.fixture(scope="module")
def vocabulary(comfy: ModuleType) -> Path:
    return Path(comfy.__path__[0]) / "sd1_tokenizer"


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(vocabulary)


@pytest.fixture(scope="module")
def whole() -> Any:
    return tiny_clip()


@pytest.fixture(scope="module")
def folder(whole: Any, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As transformers downloads it."""
    from transformers import CLIPImageProcessor

    place = tmp_path_factory.mktemp("clip") / "small-clip"
    whole.save_pretrained(place)
    size = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    CLIPImageProcessor(**size).save_pretrained(place)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, place / name)
    return place


@pytest.fixture(scope="module")
def frames() -> list[Tensor]:
    """The second one is wide: CLIP sees its middle."""
    return [sliding(5, 2, SIZE, SIZE), sliding(4, 3, 2 * SIZE, SIZE, seed=1)]


@pytest.fixture(scope="module")
def videos(frames: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of pictures, which lose nothing."""
    places = [tmp_path_factory.mktemp("videos") / name for name in ("horse", "rain")]
    for place, video in zip(places, frames, strict=True):
        place.mkdir()
        for number, frame in enumerate((video * 255).round().byte().numpy()):
            Image.fromarray(frame).save(place / f"{number}.png")
    return [str(place) for place in places]


def printed(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["metrics", *arguments]) == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    return shown.out


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["metrics", *arguments]) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    return shown.err.removeprefix("error: ").strip()


def seen(whole: Any, frames: list[Tensor]) -> list[Tensor]:
    middle = [frames[0], frames[1][:, :, SIZE // 2 : -SIZE // 2]]
    return [image_features(whole, video) for video in middle]


def asked(prompts: list[str]) -> list[str]:
    return [part for prompt in prompts for part in ("--prompt", prompt)]


# --- what is measured -----------------------------------------------------------------------


def test_json_has_the_measures_of_the_plain_formulas(
    folder: Path, whole: Any, tokenizer: Any, videos: list[str], frames: list[Tensor], capfd: Any
) -> None:
    pytest.importorskip("cv2")
    line = printed([*videos, *asked(PROMPTS), "--clip", str(folder), "--json"], capfd)
    assert line.endswith("\n") and line.count("\n") == 1
    found = json.loads(line)
    embeddings, texts = seen(whole, frames), text_features(whole, tokenizer, PROMPTS)
    for number, (one, name) in enumerate(zip(found["videos"], ("horse", "rain"), strict=True)):
        assert one == {
            "name": name,
            "text_alignment": pytest.approx(
                text_alignment(embeddings[number], texts[number]), abs=1e-3
            ),
            "frame_consistency": pytest.approx(frame_consistency(embeddings[number]), abs=1e-3),
            "motion": pytest.approx(motion_amount(frames[number])),
            "background": pytest.approx(background_stability(frames[number])),
        }
    assert found["diversity"] == pytest.approx(diversity(embeddings), abs=1e-3)
    similarity = video_similarity(embeddings)
    assert found["video_similarity"] == pytest.approx(similarity, abs=1e-3)
    mean = (found["videos"][0]["motion"] + found["videos"][1]["motion"]) / 2
    assert found["mean"]["motion"] == pytest.approx(mean)


def test_the_table_has_a_line_for_each_video(
    folder: Path, whole: Any, frames: list[Tensor], videos: list[str], capfd: Any
) -> None:
    lines = printed([*videos, *asked(PROMPTS[:1]), "--clip", str(folder)], capfd).splitlines()
    assert lines[0].split() == [
        *("video", "alignment", "consistency", "motion", "px", "background", "dB"),
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["horse", "rain", "mean"]
    assert len({len(line) for line in lines[:4]}) == 1
    consistent = [frame_consistency(one) for one in seen(whole, frames)]
    assert [line.split()[2] for line in lines[1:3]] == [f"{value:.2f}" for value in consistent]
    embeddings = seen(whole, frames)
    told = {line.rpartition(" (")[0] for line in lines[-2:]}
    assert told == {
        f"diversity {diversity(embeddings):.2f}",
        f"video similarity {video_similarity(embeddings):.2f}",
    }


def test_without_clip_there_is_the_flow(tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("cv2")
    moving = (sliding(8, 2) * 255).round().byte().numpy()
    file = write_video(tmp_path / "moving.mp4", list(moving))
    lines = printed([str(file)], capfd).splitlines()
    assert lines[1].split()[:3] == ["moving.mp4", "-", "-"]
    assert float(lines[1].split()[3]) == pytest.approx(2, rel=0.1)
    assert lines[3:] == [
        "Frame consistency and diversity need CLIP's image encoder.",
        "Text alignment needs CLIP's image and text encoder.",
    ]
    assert json.loads(printed([str(file), "--json"], capfd))["videos"][0]["text_alignment"] is None


def test_a_long_prompt_is_cut(
    folder: Path, whole: Any, tokenizer: Any, videos: list[str], frames: list[Tensor], capfd: Any
) -> None:
    found = json.loads(
        printed([videos[0], "--prompt", "x " * 100, "--clip", str(folder), "--json"], capfd)
    )
    text = text_features(whole, tokenizer, ["x " * 75])[0]
    expected = text_alignment(seen(whole, frames)[0], text)
    assert found["videos"][0]["text_alignment"] == pytest.approx(expected, abs=1e-3)


# --- open_clip ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    size = {"width": 32, "layers": 2}
    config = {
        "embed_dim": 32,
        "vision_cfg": {**size, "image_size": SIZE, "patch_size": 8, "head_width": 16},
        "text_cfg": {**size, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    place = tmp_path_factory.mktemp("open_clip")
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (place / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{place}")
    save_file(dict(model.state_dict()), place / "open_clip_model.safetensors")
    return place


def test_open_clip_measures_by_the_same_formulas(
    open_clip_folder: Path, videos: list[str], frames: list[Tensor], capfd: Any
) -> None:
    import open_clip

    arguments = [*videos, *asked(PROMPTS), "--clip", str(open_clip_folder), "--json"]
    found = json.loads(printed(arguments, capfd))
    model = open_clip.create_model(f"local-dir:{open_clip_folder}").eval().requires_grad_(False)
    middle = [frames[0], frames[1][:, :, SIZE // 2 : -SIZE // 2]]
    embeddings = [model.encode_image(normalised(video)) for video in middle]
    texts = model.encode_text(open_clip.tokenize(PROMPTS))
    for one, image, text in zip(found["videos"], embeddings, texts, strict=True):
        assert one["text_alignment"] == pytest.approx(text_alignment(image, text), abs=1e-3)
        assert one["frame_consistency"] == pytest.approx(frame_consistency(image), abs=1e-3)
    assert found["diversity"] == pytest.approx(diversity(embeddings), abs=1e-3)


def test_open_clip_takes_no_pickles_and_downloads_nothing(
    open_clip_folder: Path, videos: list[str], tmp_path: Path, capfd: Any
) -> None:
    config = json.loads((open_clip_folder / "open_clip_config.json").read_text(encoding="utf-8"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"pickle")
    sentence = refused([videos[0], "--clip", str(tmp_path)], capfd)
    assert "open_clip_model.safetensors" in sentence
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"broken")
    assert tmp_path.name in refused([videos[0], "--clip", str(tmp_path)], capfd)
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    sentence = refused([videos[0], "--clip", str(tmp_path)], capfd)
    assert "roberta-base" in sentence


def test_without_open_clip_there_is_a_sentence(
    videos: list[str], tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    (tmp_path / "open_clip_config.json").write_text("{}", encoding="utf-8")
    sentence = refused([videos[0], "--clip", str(tmp_path)], capfd)
    assert "pip install open_clip_torch" in sentence


# --- mistakes -------------------------------------------------------------------------------


def test_a_folder_that_holds_no_whole_clip_is_named(
    folder: Path, videos: list[str], tmp_path: Path, capfd: Any
) -> None:
    def sentence(place: Path) -> str:
        return refused([videos[0], "--clip", str(place)], capfd)

    assert "empty" in (found := sentence(tmp_path / "empty")) and "config.json" in found
    text = tmp_path / "text"
    text.mkdir()
    (text / "config.json").write_text('{"model_type": "clip_text_model"}', encoding="utf-8")
    assert "clip_text_model" in sentence(text)
    (text / "config.json").write_text("{", encoding="utf-8")
    assert "text" in sentence(text)


@pytest.mark.parametrize(
    "missing",
    ["model.safetensors", "preprocessor_config.json", "vocab.json", "text_projection", "half"],
)
def test_what_a_folder_lacks_is_told(
    folder: Path, videos: list[str], tmp_path: Path, missing: str, capfd: Any
) -> None:
    from safetensors.torch import load_file, save_file

    place = tmp_path / "part"
    shutil.copytree(folder, place)
    if missing == "text_projection":
        weights = load_file(place / "model.safetensors")
        del weights["text_projection.weight"]
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    elif missing == "half":
        file = place / "model.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        (place / missing).unlink()
    sentence = refused([videos[0], "--prompt", "x", "--clip", str(place)], capfd)
    assert "part" in sentence
    if missing == "text_projection":
        assert "text_projection.weight" in sentence


def test_videos_that_cannot_be_measured_are_named(
    videos: list[str], tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'none.mp4' cannot be read: there is no such file" in refused(["none.mp4"], capfd)
    one = tmp_path / "one.png"
    Image.new("RGB", (SIZE, SIZE)).save(one)
    assert "'one.png' has one frame" in refused([str(one)], capfd)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, size in enumerate((SIZE, 48)):
        Image.new("RGB", (size, size)).save(mixed / f"{number}.png")
    assert "The pictures in 'mixed' differ in size" in refused([str(mixed)], capfd)
    assert "2 prompts for 1 videos" in refused([videos[0], *asked(PROMPTS)], capfd)
    monkeypatch.setattr("lamp.cli.metrics._MOST_BYTES", 10_000)
    assert "'horse' is too long to measure" in refused([videos[0]], capfd)
