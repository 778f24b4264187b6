"""Training clips in the real server: folders, lists of videos, the core dataset loader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.samples.clip_files import numbered_frame, texture, write_numbered, write_video
from scripts.server.run import RunResult
from scripts.server.server import ComfyServer
from tests.host.generate_graphs import node

Graph = dict[str, dict[str, Any]]


def reading(**inputs: Any) -> Graph:
    chosen = {
        "folder": "(from images)", "prompt": "it moves", "frames": 4, "width": 64, "height": 48,
        "fps": 0.0, "stride": 1, "fit": "crop", "short_clips": "error", "flip": False,
    }  # fmt: skip
    return {
        "clips": node("LAMP_TrainingClips", **{**chosen, **inputs}),
        "report": node("PreviewAny", source=["clips", 1]),
        "sheet": node("SaveImage", images=["clips", 2], filename_prefix="sheet"),
    }


def report(result: RunResult) -> list[str]:
    return result.check().outputs["report"]["text"][0].splitlines()


def sheet(server: ComfyServer, result: RunResult) -> np.ndarray:
    (file,) = result.files("sheet")
    return np.asarray(Image.open(io.BytesIO(server.view(file))).convert("RGB"))


@pytest.fixture(scope="module")
def folder(server: ComfyServer) -> Path:
    """Three clips: numbered frames, a sliding image with its own caption, a portrait clip."""
    path = server.base / "input" / "grow 马"
    path.mkdir()
    write_numbered(path / "a.mp4", 12)
    slide = [np.roll(texture(64, 48), 2 * number, axis=1) for number in range(9)]
    write_video(path / "b.mp4", slide, pixels="yuv444p")
    (path / "b.txt").write_bytes(b"\xef\xbb\xbf" + "a 画, {motion}".encode())
    write_numbered(path / "c.mp4", 6, 48, 64)
    (path / "c.txt").write_text("")
    return path


def test_a_folder_of_clips(server: ComfyServer, folder: Path) -> None:
    result = server.queue(reading(folder="input/grow 马", bucket=True))
    head, first, second, third, _, *warnings = report(result)
    assert head == "3 clips, 18 windows of 4 frames, stride 1, 64 x 48 and 48 x 64"
    assert first.startswith("1. a.mp4: 64 x 48, 10 fps, 12 frames, 9 windows, ")
    assert first.endswith("'it moves' (prompt)") and second.endswith("'a 画, it moves' (file)")
    assert third.startswith("3. c.mp4: 48 x 64, 10 fps, 6 frames, 3 windows, ")
    assert all(name in warnings[0] for name in ("'c.mp4'", "'c.txt'", "'it moves'"))
    (summary,) = result.outputs["clips"]["text"]
    assert summary.startswith(head) and f"{len(warnings)} warning" in summary
    shown = sheet(server, result)
    numbers = [round((int(shown[50, 20 + 132 * place, 0]) - 4) / 8) for place in range(6)]
    assert numbers == [0, 2, 4, 7, 9, 11]
    assert ("clips", 3, 3) in result.progress


def test_the_folder_is_read_again_when_a_file_changes(server: ComfyServer, folder: Path) -> None:
    graph = reading(folder="input/grow 马", prompt="again")
    server.queue(graph).check()
    assert "clips" in server.queue(graph).check().cached
    (folder / "c.txt").write_text("now there is one")
    result = server.queue(graph)
    assert report(result)[3].endswith("'now there is one' (file)")
    (folder / "c.txt").write_text("")


def test_a_list_of_video_files_with_their_captions(server: ComfyServer, folder: Path) -> None:
    films = {"films": node("TestVideos", files="grow 马/a.mp4\ngrow 马/c.mp4", texts="one\ntwo")}
    clips = reading(videos=["films", 0], prompt=["films", 1])
    _, first, second, *_ = report(server.queue({**films, **clips}))
    assert first.startswith("1. a.mp4: 64 x 48, 10 fps, 12 frames, ")
    assert first.endswith("'one' (given)") and second.endswith("'two' (given)")


def test_core_video_nodes(server: ComfyServer, folder: Path) -> None:
    """A file from Load Video, then a list of videos that other nodes made."""
    load = {"film": node("LoadVideo", file="grow 马/a.mp4")}
    _, line, *_ = report(server.queue({**load, **reading(videos=["film", 0])}))
    assert line.startswith("1. a.mp4: 64 x 48, 10 fps, 12 frames, ")
    made = {
        "world": node("LAMP_ToyClips", seed=0, clips=4),
        "film": node("CreateVideo", images=["world", 0], fps=5.0),
    }
    toy = {"videos": ["film", 0], "prompt": ["world", 1], "width": 32, "height": 32}
    lines = report(server.queue({**made, **reading(**toy)}))
    assert lines[0] == "4 clips, 20 windows of 4 frames, stride 1, 32 x 32"
    assert all(f"video {n}: 32 x 32, 5 fps, 8 frames, 5 windows" in lines[n] for n in range(1, 5))
    assert len({line.split("'")[1] for line in lines[1:5]}) == 4


def test_core_image_dataset_loader(server: ComfyServer) -> None:
    if "LoadImageTextDataSetFromFolder" not in server.object_info():
        pytest.skip("this ComfyUI has no nodes for datasets")
    folder = server.base / "input" / "singles"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(numbered_frame(number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("it grows")
    load = {"data": node("LoadImageTextDataSetFromFolder", folder="singles")}
    clips = reading(images=["data", 0], prompt=["data", 1])
    head, line, _, warning = report(server.queue({**load, **clips}))
    assert head.startswith("1 clip, 3 windows") and line.endswith("'it grows' (given)")
    assert "6 single images" in warning


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, ["folder", "images", "videos"]),
        ({"videos": ["films", 0], "folder": "input/grow 马"}, ["videos", "'input/grow 马'"]),
        ({"videos": ["films", 0], "frames": 13}, ["'a.mp4'", " 12 frames", " 13"]),
        ({"videos": ["films", 0], "prompt": ["films", 1]}, ["2 captions", "1 clip"]),
    ],
)
def test_errors_name_what_is_wrong(
    server: ComfyServer, folder: Path, inputs: dict[str, Any], words: list[str]
) -> None:
    films = {"films": node("TestVideos", files="grow 马/a.mp4", texts="one\ntwo")}
    error = server.queue({**films, **reading(**inputs)}).error
    assert error is not None and error.message.startswith("LAMP Training Clips: ")
    assert all(word in error.message for word in words)
