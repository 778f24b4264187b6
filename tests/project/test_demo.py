"""The demo's pictures, marks and progress line; the demo itself takes minutes."""

from __future__ import annotations

import io
from pathlib import Path

import av
import pytest
from PIL import Image

from lamp.cli.terminal import Terminal
from lamp.toy.scenes.canvas import SIZE
from lamp.toy.scenes.cases import FRAMES, SceneCase, evaluation_cases
from lamp.toy.scenes.score import still_video
from scripts import demo
from scripts.demo_pictures import VIDEO_ROUNDS, Film, write_pictures

pytestmark = pytest.mark.slow  # many of them


@pytest.fixture(scope="module")
def cases() -> list[SceneCase]:
    return evaluation_cases(0, "horse", 3)


def perfect(cases: list[SceneCase]) -> list[Film]:
    return [Film(case, case.frames) for case in cases]


def still(cases: list[SceneCase]) -> list[Film]:
    return [Film(case, still_video(case)) for case in cases]


def test_perfect_videos_reach_every_mark(cases: list[SceneCase]) -> None:
    figures = demo.measure(perfect(cases))
    assert demo.missed(figures["learned"]) == []
    assert figures["learned"]["followed"] == 1.0


def test_still_videos_miss_every_mark(cases: list[SceneCase]) -> None:
    figures = demo.measure(still(cases))
    assert len(demo.missed(figures["learned"])) == len(demo.MARKS)
    assert figures["learned"] == figures["still"]


def test_the_exit_status_tells_whether_the_motion_was_learned(
    cases: list[SceneCase], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.report(perfect(cases), [tmp_path / "a.webp"], tmp_path) == 0
    assert "3 of 3" in capsys.readouterr().out
    assert demo.report(still(cases), [], tmp_path) == 1
    assert "motion" in capsys.readouterr().err
    assert (tmp_path / "score.json").is_file()


def test_pictures_show_every_frame(cases: list[SceneCase], tmp_path: Path) -> None:
    films = perfect(cases[:2]) + still(cases[2:])
    write_pictures(films, tmp_path)
    with Image.open(tmp_path / "motion.webp") as film:
        assert getattr(film, "n_frames", 1) == FRAMES
        size = film.size
    with av.open(str(tmp_path / "motion.mp4")) as video:
        frames = list(video.decode(video=0))
    assert len(frames) == FRAMES * VIDEO_ROUNDS
    assert (frames[0].width, frames[0].height) == size
    assert Image.open(tmp_path / "contact_sheet.png").height > 3 * 2 * SIZE


def test_the_prompt_asks_for_one_picture_and_its_frames() -> None:
    prompt = demo.toy_prompt(5, 7)
    clips = prompt[demo.node_of(prompt, "LAMP_ToyClips")]["inputs"]
    chosen = prompt[demo.node_of(prompt, "LAMP_ToyObject")]["inputs"]
    assert clips["seed"] == chosen["seed"] == 5
    assert chosen["number"] == 7 and chosen["motion"] == clips["motion"]
    shown = prompt["frames"]["inputs"]["images"]
    assert prompt[shown[0]]["class_type"] == "VAEDecode"


def test_a_missing_host_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nowhere"))
    assert demo.main(["--out", str(tmp_path / "out")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_encoding_and_training_are_shown_apart() -> None:
    prompt = demo.toy_prompt(0, 0)
    trainer = demo.node_of(prompt, "LAMP_Trainer")
    watch = demo.Watch(Terminal(stream := io.StringIO()), prompt, "picture 1/1")
    for text, value in (("clip 1 of 8 encoded", 1), ("loss 0.1234, step 60 of 300", 60)):
        watch({"type": "progress_text", "data": {"node": trainer, "text": text}})
        watch({"type": "progress", "data": {"node": trainer, "value": value, "max": 300}})
    encoding, training = stream.getvalue().splitlines()
    assert "clips" in encoding and "clip 1 of 8" not in encoding
    assert "clips" not in training and "loss 0.1234, step 60 of 300" in training
