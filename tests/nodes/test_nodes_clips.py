"""LAMP Training Clips with the host's own VIDEOs, called as ComfyUI calls it."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.samples.clip_files import numbers_of, sliding, write_numbered
from lamp.clips.load import ClipSet
from lamp.errors import ClipError

SETTINGS = {
    "frames": 4, "width": 64, "height": 48, "fps": 0.0, "stride": 1,
    "fit": "crop", "short_clips": "error", "flip": False,
}  # fmt: skip


@pytest.fixture
def node(node_classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    found = node_classes["LAMP_TrainingClips"]
    monkeypatch.setattr(found, "hidden", SimpleNamespace(unique_id=None))
    shown = sys.modules["comfy_api.latest"].ui  # the preview's file is the host's business
    picture = SimpleNamespace(as_dict=lambda: {"images": ["a.png"]})
    monkeypatch.setattr(shown, "PreviewImage", lambda sheet, cls: picture)
    return found


@pytest.fixture
def api(node: Any) -> Any:
    return sys.modules["comfy_api.latest"]


def run(node: Any, **inputs: Any) -> Any:
    lists = {name: [value] for name, value in SETTINGS.items()}
    return node.execute(**{"folder": ["(from images)"], "prompt": ["x"], **lists, **inputs})


def read(node: Any, **inputs: Any) -> ClipSet:
    return run(node, **inputs)[0]


def whole(clips: ClipSet, number: int = 0) -> list[int]:
    return numbers_of(torch.cat(list(clips.chunks(number))))


def test_a_list_of_videos_each_with_its_caption(node: Any, api: Any, tmp_path: Path) -> None:
    files = [write_numbered(tmp_path / f"clip {number}.mp4", 10 + number) for number in range(2)]
    films = [api.InputImpl.VideoFromFile(str(path)) for path in files]
    made = api.Types.VideoComponents(images=sliding(7, 2), frame_rate=Fraction(12))
    films.append(api.InputImpl.VideoFromComponents(made))
    clips = read(node, videos=films, prompt=["one", "two", "three"])
    assert clips.captions == ["one", "two", "three"]
    assert [info.name for info in clips.infos] == ["clip 0.mp4", "clip 1.mp4", "video 3"]
    assert [info.fps for info in clips.infos] == [10.0, 10.0, 12.0]
    assert [clips.length(number) for number in range(3)] == [10, 11, 7]
    assert whole(clips, 1) == list(range(11))


def test_a_film_in_a_file_is_not_asked_for_all_its_frames(
    node: Any, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = api.InputImpl.VideoFromFile(str(write_numbered(tmp_path / "a.mp4", 8)))

    def refuse(self: Any) -> None:
        raise AssertionError("the whole film was decoded")

    monkeypatch.setattr(api.InputImpl.VideoFromFile, "get_components", refuse)
    assert whole(read(node, videos=[film])) == list(range(8))


def test_a_film_in_memory(node: Any, api: Any, tmp_path: Path) -> None:
    data = io.BytesIO(write_numbered(tmp_path / "a.mp4", 8).read_bytes())
    clips = read(node, videos=[api.InputImpl.VideoFromFile(data)])
    assert whole(clips) == list(range(8)) and clips.infos[0].name == "video 1"


def test_a_trimmed_film(node: Any, api: Any, tmp_path: Path) -> None:
    """As hosts from 2026 on tell it, which keep the file and the marks apart."""

    class Trimmed(api.InputImpl.VideoFromFile):
        def get_active_trim_window(self) -> tuple[float, float]:
            return 0.5, self.duration

    film = Trimmed(str(write_numbered(tmp_path / "a.mp4", 20)))
    film.duration = 0.8
    assert whole(read(node, videos=[film])) == list(range(5, 13))
    film.duration = 0.0  # up to the end
    assert whole(read(node, videos=[film])) == list(range(5, 20))


def test_a_cropped_film_comes_as_the_host_shows_it(node: Any, api: Any, tmp_path: Path) -> None:
    class Cropped(api.InputImpl.VideoFromFile):
        def get_dimensions(self) -> tuple[int, int]:
            return 32, 48

        def get_components(self) -> Any:
            parts = super().get_components()
            return api.Types.VideoComponents(
                images=parts.images[:, :, :32], frame_rate=parts.frame_rate
            )

    clips = read(node, videos=[Cropped(str(write_numbered(tmp_path / "a.mp4", 6)))])
    assert (clips.infos[0].width, clips.infos[0].height, clips.infos[0].fps) == (32, 48, 10.0)


def test_images_and_videos_together(node: Any, api: Any, tmp_path: Path) -> None:
    film = api.InputImpl.VideoFromFile(str(write_numbered(tmp_path / "a.mp4", 8)))
    clips = read(node, images=[sliding(5, 1)], videos=[film], prompt=["sea", "a film"])
    assert [info.name for info in clips.infos] == ["clip 1", "a.mp4"]
    assert clips.captions == ["sea", "a film"]


def test_bucket_and_settings_reach_the_clips(node: Any) -> None:
    clips = read(node, images=[sliding(5, 1, 48, 64)], bucket=[True], fps=[0.0])
    assert clips.size(0) == (48, 64) and clips.settings.fps is None
    assert read(node, images=[sliding(5, 1, 48, 64)]).size(0) == (64, 48)


def test_what_is_wrong_is_said(node: Any, api: Any, tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="^LAMP Training Clips: Choose a folder of clips, or con"):
        read(node)
    with pytest.raises(ClipError, match="Both videos and the folder 'input/x' are given"):
        read(node, folder=["input/x"], videos=[object()])
    with pytest.raises(ClipError, match="There is no folder 'input/../../etc': press R"):
        read(node, folder=["input/../../etc"])
    gone = api.InputImpl.VideoFromFile(str(tmp_path / "gone.mp4"))
    with pytest.raises(ClipError, match="The clip 'gone.mp4' cannot be read: there is no such"):
        read(node, videos=[gone])
    with pytest.raises(ClipError, match="3 captions came for 2 clips"):
        read(node, images=[sliding(5, 1)] * 2, prompt=["a", "b", "c"])
    nothing = api.Types.VideoComponents(images=torch.zeros(0, 3, 0, 0), frame_rate=Fraction(1))
    with pytest.raises(ClipError, match="Images of video 1 must have the shape"):
        read(node, videos=[api.InputImpl.VideoFromComponents(nothing)])


def test_the_picture_and_the_text_of_the_node(node: Any) -> None:
    told = "1 clip, 2 windows of 4 frames, stride 1, 64 x 48; 1 warning in the report"
    found = run(node, images=[sliding(5, 1)], prompt=[""])
    assert found.ui == {"images": ["a.png"], "text": (told,)}
