"""LAMP Training Clips with VIDEOs of the host, called as ComfyUI calls it."""

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
from lamp.clips.clip_set import ClipSet
from lamp.errors import ClipError

SETTINGS = {
    "frames": 4, "width": 64, "height": 48, "fps": 0.0, "stride": 1,
    "fit": "crop", "short_clips": "error", "flip": False,
}  # fmt: skip


@pytest.fixture
def node(node_classes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    found = node_classes["LAMP_TrainingClips"]
    monkeypatch.setattr(found, "hidden", SimpleNamespace(unique_id=None))
    shown = sys.modules["comfy_api.latest"].ui  # the host writes the preview
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


def test_a_renamed_folder_of_a_clip_is_read_again(
    node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[node.__module__]
    monkeypatch.setattr(module, "clip_folders", lambda: {"horse": tmp_path})
    (tmp_path / "clip_7x").mkdir()
    write_numbered(tmp_path / "clip_7x" / "a.mp4", 4)
    before = node.fingerprint_inputs(folder=["horse"])
    assert node.fingerprint_inputs(folder=["horse"]) == before
    (tmp_path / "clip_7x").rename(tmp_path / "clip_7")
    assert node.fingerprint_inputs(folder=["horse"]) != before


def test_a_list_of_videos_with_captions(node: Any, api: Any, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("prompt", ["", "a horse runs"])
def test_videos_that_are_named_after_their_folder_are_told(
    node: Any, api: Any, tmp_path: Path, prompt: str
) -> None:
    """The folder of a VIDEO is ComfyUI's input, which says nothing of what it shows."""
    (tmp_path / "input").mkdir()
    film = api.InputImpl.VideoFromFile(str(write_numbered(tmp_path / "input" / "a.mp4", 8)))
    clips = read(node, videos=[film], prompt=[prompt])
    assert clips.captions == [prompt or "input"]
    assert [text for text in clips.warnings if "'input'" in text and "prompt" in text] == (
        [] if prompt else clips.warnings[-1:]
    )


def test_a_video_file_is_not_decoded_as_a_whole(
    node: Any, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = api.InputImpl.VideoFromFile(str(write_numbered(tmp_path / "a.mp4", 8)))

    def refuse(self: Any) -> None:
        raise AssertionError("the whole video was decoded")

    monkeypatch.setattr(api.InputImpl.VideoFromFile, "get_components", refuse)
    assert whole(read(node, videos=[film])) == list(range(8))


def test_a_video_in_memory(node: Any, api: Any, tmp_path: Path) -> None:
    data = io.BytesIO(write_numbered(tmp_path / "a.mp4", 8).read_bytes())
    clips = read(node, videos=[api.InputImpl.VideoFromFile(data)])
    assert whole(clips) == list(range(8)) and clips.infos[0].name == "video 1"


def test_a_trimmed_video(node: Any, api: Any, tmp_path: Path) -> None:
    """Hosts from 2026 on keep the file and the trim window apart."""

    class Trimmed(api.InputImpl.VideoFromFile):
        def get_active_trim_window(self) -> tuple[float, float]:
            return 0.5, self.duration

    film = Trimmed(str(write_numbered(tmp_path / "a.mp4", 20)))
    film.duration = 0.8
    assert whole(read(node, videos=[film])) == list(range(5, 13))
    film.duration = 0.0  # up to the end
    assert whole(read(node, videos=[film])) == list(range(5, 20))


def test_a_video_that_is_trimmed_nobody_knows_where(
    node: Any, api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Video Slice of ComfyUI 0.14 to 0.22."""
    whole_file = api.InputImpl.VideoFromFile
    if hasattr(whole_file, "get_active_trim_window"):
        pytest.skip("this ComfyUI tells where")

    class Sliced(whole_file):  # type: ignore[misc, valid-type]
        def __init__(self, file: Any, *, start_time: float = 0.0, duration: float = 0.0) -> None:
            super().__init__(file)
            self.cut = start_time, duration

        def get_duration(self) -> float:
            return self.cut[1] or super().get_duration()

        def get_components(self) -> Any:
            parts = super().get_components()
            rate = float(parts.frame_rate)
            start, end = (round(rate * each) for each in (self.cut[0], sum(self.cut)))
            return api.Types.VideoComponents(
                images=parts.images[start : end or None], frame_rate=parts.frame_rate
            )

    monkeypatch.setattr(api.InputImpl, "VideoFromFile", Sliced)
    path = str(write_numbered(tmp_path / "a.mp4", 20))
    assert whole(read(node, videos=[Sliced(path)])) == list(range(20))
    sliced = read(node, videos=[Sliced(path, start_time=0.5, duration=0.8)])
    assert whole(sliced) == list(range(5, 13))


def test_a_cropped_video_is_decoded_by_the_host(node: Any, api: Any, tmp_path: Path) -> None:
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


def test_transparent_parts_of_a_cropped_video_are_black(
    node: Any, api: Any, tmp_path: Path
) -> None:
    """Newer hosts hold what is transparent beside the pictures."""

    class Cropped(api.InputImpl.VideoFromFile):
        def get_dimensions(self) -> tuple[int, int]:
            return 64, 32

        def get_components(self) -> Any:
            alpha = torch.ones(6, 32, 64, 1)
            alpha[:, :, 32:] = 0.0
            images = torch.full((6, 32, 64, 3), 0.6)
            return SimpleNamespace(images=images, alpha=alpha, frame_rate=Fraction(10))

    clips = read(node, videos=[Cropped(str(write_numbered(tmp_path / "a.mp4", 6)))], width=[64])
    shown = torch.cat(list(clips.chunks(0))).float()
    half = shown.shape[2] // 2
    assert (shown[:, :, : half - 2] - 153).abs().max() <= 1 and not shown[:, :, half + 2 :].any()


def test_images_and_videos_together(node: Any, api: Any, tmp_path: Path) -> None:
    film = api.InputImpl.VideoFromFile(str(write_numbered(tmp_path / "a.mp4", 8)))
    clips = read(node, images=[sliding(5, 1)], videos=[film], prompt=["sea", "a video"])
    assert [info.name for info in clips.infos] == ["clip 1", "a.mp4"]
    assert clips.captions == ["sea", "a video"]


def test_bucket_and_settings_reach_the_clips(node: Any) -> None:
    clips = read(node, images=[sliding(5, 1, 48, 64)], bucket=[True], fps=[0.0])
    assert clips.size(0) == (48, 64) and clips.settings.fps is None
    assert read(node, images=[sliding(5, 1, 48, 64)]).size(0) == (64, 48)


def test_copies_reach_the_clips(node: Any) -> None:
    limits = {"copies": 3, "turn": 45.0, "zoom": 0.5, "shift": 0.25}
    given = {name: [value] for name, value in limits.items()}
    clips = read(node, images=[sliding(5, 1)], **given)
    assert {name: getattr(clips.settings, name) for name in limits} == limits
    (copy,), (plain,) = clips.chunks(0, copy=1), clips.chunks(0)
    assert not torch.equal(copy, plain)


def test_without_new_inputs_there_are_no_copies(node: Any) -> None:
    """Saved prompts lack the inputs, and train as before."""
    defaults = {
        name: options["default"]
        for name, (_, options) in node.INPUT_TYPES()["optional"].items()
        if name in ("copies", "turn", "zoom", "shift")
    }
    settings = read(node, images=[sliding(5, 1)]).settings
    assert defaults == {name: getattr(settings, name) for name in defaults}
    assert settings.copies == 0 and len(defaults) == 4


def test_errors_name_what_is_wrong(node: Any, api: Any, tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="^LAMP Training Clips: .*folder.*images.*videos"):
        read(node)
    with pytest.raises(ClipError, match="videos.*'input/x'"):
        read(node, folder=["input/x"], videos=[object()])
    with pytest.raises(ClipError, match="'input/../../etc'"):
        read(node, folder=["input/../../etc"])
    gone = api.InputImpl.VideoFromFile(str(tmp_path / "gone.mp4"))
    with pytest.raises(ClipError, match="'gone.mp4'"):
        read(node, videos=[gone])
    with pytest.raises(ClipError, match="3 captions.* 2 clips"):
        read(node, images=[sliding(5, 1)] * 2, prompt=["a", "b", "c"])
    nothing = api.Types.VideoComponents(images=torch.zeros(0, 3, 0, 0), frame_rate=Fraction(1))
    with pytest.raises(ClipError, match="video 1"):
        read(node, videos=[api.InputImpl.VideoFromComponents(nothing)])


def test_the_node_shows_contact_sheet_and_summary(node: Any) -> None:
    found = run(node, images=[sliding(5, 1)], prompt=[""])
    (summary,) = found.ui["text"]
    assert found.ui["images"] == ["a.png"] and found[1].splitlines()[0] in summary
    assert all(fact in summary for fact in ("1 clip", "2 windows", "64 x 48"))
    warnings = [line for line in found[1].splitlines() if line.startswith("Warning")]
    assert len(warnings) == 1 and warnings[0] in summary


def test_images_have_no_rate_to_change(node: Any) -> None:
    found = run(node, images=[sliding(5, 1)], prompt=["sea"], fps=[8.0])
    (told,) = found.ui["text"]
    assert "not resampled to 8 fps" in told and " fps" not in told.splitlines()[0]
