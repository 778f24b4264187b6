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
    assert summary == "\n".join([head, *warnings])
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


def need(server: ComfyServer, kind: str) -> None:
    if kind not in server.object_info():
        pytest.skip(f"this ComfyUI has no node {kind}")


def first_frames(server: ComfyServer, result: RunResult) -> list[int]:
    """The number in the first frame of each clip of numbered frames."""
    shown = sheet(server, result)
    return [round((int(shown[50 + 100 * row, 20, 0]) - 4) / 8) for row in range(2)]


def test_core_video_dataset_loader(server: ComfyServer, folder: Path) -> None:
    need(server, "LoadVideoTextDataSetFromFolder")
    load = {
        "data": node("LoadVideoTextDataSetFromFolder", folder="grow 马"),
        "words": node(
            "StringConcatenate", string_a=["data", 1], string_b="in a field", delimiter=" "
        ),
    }
    lines = report(server.queue({**load, **reading(videos=["data", 0], prompt=["data", 1])}))
    assert lines[0].startswith("3 clips, 18 windows")
    captions = [line.split("'")[1] for line in lines[1:4]]
    assert captions == ["grow 马", "a 画, grow 马", "grow 马"]  # the folder's, where there is none
    # A node for one text runs once for each clip.
    lines = report(server.queue({**load, **reading(videos=["data", 0], prompt=["words", 0])}))
    assert lines[2].endswith("'a 画, grow 马 in a field' (given)")


def test_clips_trimmed_and_ordered_on_the_canvas(server: ComfyServer, folder: Path) -> None:
    need(server, "VideoTemporalCrop")
    need(server, "CreateList")
    graph = {
        "a": node("LoadVideo", file="grow 马/a.mp4"),
        "trimmed": node(
            "Video Slice", video=["a", 0], start_time=0.5, duration=0.6, strict_duration=True
        ),
        "b": node("LoadVideo", file="grow 马/c.mp4"),
        "cropped": node("VideoTemporalCrop", video=["b", 0], start_frame=2, length=4),
        "list": node(
            "CreateList", **{"inputs.input0": ["cropped", 0], "inputs.input1": ["trimmed", 0]}
        ),
        "texts": node("TestVideos", files="grow 马/a.mp4\ngrow 马/c.mp4", texts="one\ntwo"),
    }
    clips = reading(videos=["list", 0], prompt=["texts", 1])
    result = server.queue({**graph, **clips})
    _, first, second, *_ = report(result)
    assert " 4 frames, 1 window," in first and first.endswith("'one' (given)")
    assert " 6 frames, 3 windows," in second and second.endswith("'two' (given)")
    assert first_frames(server, result) == [2, 5]


def test_core_nodes_shuffle_and_thin_videos(server: ComfyServer, folder: Path) -> None:
    need(server, "ShuffleVideoTextDataset")
    graph = {
        "films": node("TestVideos", files="grow 马/a.mp4\ngrow 马/c.mp4", texts="long\nshort"),
        "mixed": node("ShuffleVideoTextDataset", videos=["films", 0], texts=["films", 1], seed=1),
        "thin": node(
            "VideoFrameSample", video=["mixed", 0], num_frames=4, strategy="uniform", seed=0
        ),
    }
    lines = report(server.queue({**graph, **reading(videos=["mixed", 0], prompt=["mixed", 1])}))
    frames = {line.split("'")[1]: " 12 frames" in line for line in lines[1:3]}
    assert frames == {"long": True, "short": False}
    lines = report(server.queue({**graph, **reading(videos=["thin", 0], prompt=["mixed", 1])}))
    assert all(" 4 frames, 1 window" in line for line in lines[1:3])


def test_core_image_dataset_loader(server: ComfyServer) -> None:
    need(server, "LoadImageTextDataSetFromFolder")
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
