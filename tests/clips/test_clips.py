"""Sets of training clips: windows, settings, captions, reports."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.samples.clip_files import numbered_frame, numbers_of, write_numbered, write_video
from lamp.clips.clip_set import ClipSet, Window
from lamp.clips.load import clips_from_images, clips_from_sources, load_clips
from lamp.clips.report import contact_sheet, describe_clips
from lamp.clips.settings import ClipSettings
from lamp.clips.sources import BatchSource
from lamp.errors import ClipError, LampError
from lamp.training.outcome import describe_training
from lamp.training.recipe import TrainConfig

SIZE = {"width": 64, "height": 48}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three clips of 8, 12 and 20 frames at 10 fps."""
    path = tmp_path / "grow_bright"
    path.mkdir()
    for count in (8, 12, 20):
        write_numbered(path / f"clip{count}.mp4", count)
    return path


def whole(clips: ClipSet, clip: int = 0) -> torch.Tensor:
    """All frames of a clip."""
    return torch.cat(list(clips.chunks(clip)))


def window_frames(clips: ClipSet, window: Window) -> torch.Tensor:
    """The pictures of a window, as training sees them."""
    frames = torch.cat(list(clips.chunks(window.clip, mirrored=window.flipped)))
    return frames[clips.frame_numbers(window)]


def shown(clips: ClipSet, window: Window) -> list[int]:
    return numbers_of(window_frames(clips, window))


def grey_clip(count: int, width: int = 64, height: int = 48, channels: int = 3) -> torch.Tensor:
    """An IMAGE batch whose frames encode their numbers."""
    values = torch.tensor([(8 * number + 4) / 255 for number in range(count)])
    return values[:, None, None, None].expand(count, height, width, channels)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_start_gives_a_window(folder):
    clips = load_clips(folder, "it grows", 8, **SIZE)
    assert [clips.starts(clip) for clip in range(3)] == [1, 5, 13]
    windows = clips.windows()
    assert windows == [Window(clip, s) for clip, n in enumerate((1, 5, 13)) for s in range(n)]
    for window in windows:
        assert shown(clips, window) == list(range(window.start, window.start + 8))
    assert clips.captions == ["it grows"] * 3


def test_all_windows_are_drawn_and_clips_equally_often(folder):
    clips = load_clips(folder, "", 8, **SIZE)
    source = generator()
    drawn = [clips.sample_window(source) for _ in range(1500)]
    assert set(drawn) == set(clips.windows())
    shares = torch.bincount(torch.tensor([window.clip for window in drawn])) / 1500
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3), rtol=0, atol=0.05)
    assert {clips.sample_window(source, clip=1).clip for _ in range(20)} == {1}


def test_draws_repeat_with_the_seed(folder):
    clips = load_clips(folder, "", 8, **SIZE)
    first, second = generator(5), generator(5)
    assert [clips.sample_window(first) for _ in range(20)] == [
        clips.sample_window(second) for _ in range(20)
    ]


def test_stride_keeps_every_start(folder):
    clips = load_clips([folder / "clip20.mp4"], "", 4, stride=3, **SIZE)
    assert [shown(clips, window) for window in clips.windows()] == [
        [start, start + 3, start + 6, start + 9] for start in range(11)
    ]


def test_frame_rate(folder):
    clips = load_clips([folder / "clip20.mp4"], "", 4, fps=5, **SIZE)
    assert numbers_of(whole(clips)) == list(range(0, 20, 2))
    doubled = load_clips([folder / "clip20.mp4"], "", 4, fps=20, **SIZE)
    assert doubled.length(0) == 40


def test_a_window_has_the_speed_of_its_clip(folder):
    clips = [folder / "clip20.mp4"]  # of 10 frames a second
    assert load_clips(clips, "", 4, **SIZE).window_rate == 10
    assert load_clips(clips, "", 4, stride=2, **SIZE).window_rate == 5
    assert load_clips(clips, "", 4, fps=20, stride=2, **SIZE).window_rate == 10
    pictures = clips_from_images([grey_clip(8)], "", 4, stride=2, **SIZE)
    assert pictures.window_rate is None  # nothing tells a rate
    assert pictures.sample_rate == 4  # the half of 8


@pytest.mark.parametrize(
    ("rates", "fps", "told", "warned"),
    [
        ([10, 30, 24, 30], None, None, ["10", "30"]),
        ([30, 10], None, None, ["10", "30"]),
        ([30, 29.97, 30], None, 30, []),
        ([10, 30], 8.0, 8, []),
        ([10, 30], 10.5, 10.5, []),
        ([10, 30, 8], 24.0, 24, ["clip 1", "1 more", "10"]),
        ([25, None], None, 25, []),
        ([25, None], 8.0, 8, ["clip 2", "8"]),
        ([None, None], 8.0, None, ["clip 1", "8"]),
    ],
)
def test_the_rate_of_a_clip_set(
    rates: list[float | None], fps: float | None, told: float | None, warned: list[str]
) -> None:
    sources = [
        BatchSource(f"clip {n}", [grey_clip(40)], rate) for n, rate in enumerate(rates, start=1)
    ]
    clips = clips_from_sources(sources, "runs", ClipSettings(frames=4, fps=fps, **SIZE))
    assert clips.window_rate == told
    assert describe_training(TrainConfig(frames=4), clips, "sd1")["fps"] == (told or 0)
    warnings = [text for text in clips.warnings if "rate" in text]
    assert len(warnings) == bool(warned)
    assert all(word in warnings[0] for word in warned)
    first = rates[0] and (fps or rates[0])
    assert clips.sample_rate == (first or 8)


@pytest.mark.parametrize(("fps", "stride", "told"), [(24.0, 2, False), (24.0, 1, True)])
def test_frames_that_the_stride_leaves_out_are_no_stutter(
    fps: float, stride: int, told: bool
) -> None:
    sources = [BatchSource(f"clip {rate}", [grey_clip(60)], rate) for rate in (24.0, 12.0)]
    settings = ClipSettings(frames=4, fps=fps, stride=stride, **SIZE)
    clips = clips_from_sources(sources, "runs", settings)
    warnings = [text for text in clips.warnings if "stutter" in text]
    assert len(warnings) == told and all("fps to 12" in text for text in warnings)


def test_another_rate_gives_other_frames_and_another_key() -> None:
    images = torch.arange(600.0).remainder(251)[:, None, None, None].expand(-1, 8, 8, 3) / 255
    seen = {}
    for rate in (24.0, 30.0):
        source = BatchSource("clip", [images], rate)
        clips = clips_from_sources([source], "runs", ClipSettings(frames=4, fps=24.0, **SIZE))
        assert clips.length(0) == 480  # the most of a clip that is trained on
        seen[clips.key(0)] = [int(frame[0, 0, 0]) for frame in clips.frames(0, range(470, 475))]
    assert len(seen) == len({str(each) for each in seen.values()}) == 2


@pytest.mark.parametrize(
    ("width", "height", "kept"), [(64, 64, 0.625), (48, 64, 0.47), (80, 64, 0.78), (96, 64, 0.94)]
)
def test_a_crop_of_a_third_leads_to_a_warning(width: int, height: int, kept: float) -> None:
    images = [torch.rand(4, height, width, 3)]
    clips = clips_from_images(images, "runs", 4, 64, 40)
    warned = [text for text in clips.warnings if f"{width} x {height}" in text]
    assert len(warned) == (kept < 0.7)


def test_a_clip_of_exactly_n_frames_has_one_window(folder):
    clips = load_clips([folder / "clip8.mp4"], "", 8, **SIZE)
    assert clips.windows() == [Window(0, 0)]
    assert clips.sample_window(generator()) == Window(0, 0)


def test_short_clips_by_rule(folder):
    with pytest.raises(ClipError, match="'clip8.mp4'.* 8 .* 10 "):
        load_clips(folder, "", 10, **SIZE)
    skipped = load_clips(folder, "", 10, short="skip", **SIZE)
    assert [info.name for info in skipped.infos] == ["clip12.mp4", "clip20.mp4"]
    assert len(skipped.warnings) == 1 and "'clip8.mp4' has 8 frames" in skipped.warnings[0]
    looped = load_clips(folder, "", 10, short="loop", **SIZE)
    assert numbers_of(whole(looped)) == [*range(8), 0, 1]
    assert len(looped.warnings) == 1 and "loop" in looped.warnings[0]
    with pytest.raises(ClipError, match="3.* 30 "):
        load_clips(folder, "", 30, short="skip", **SIZE)


def test_short_counts_after_the_frame_rate(folder):
    with pytest.raises(ClipError, match="'clip8.mp4'.* 4 .* 5 fps.* 8"):
        load_clips(folder, "", 8, fps=5, **SIZE)


def test_flip_mirrors_whole_windows_half_the_time():
    ramp = torch.linspace(0, 1, 64).expand(4, 48, 64)[..., None].expand(4, 48, 64, 3)
    clips = clips_from_images([ramp], "it moves", 4, flip=True, **SIZE)
    source = generator()
    drawn = [clips.sample_window(source) for _ in range(400)]
    assert np.mean([window.flipped for window in drawn]) == pytest.approx(0.5, abs=0.08)
    plain, mirrored = (window_frames(clips, Window(0, 0, flipped)) for flipped in (False, True))
    assert (plain[..., 0, :] == 0).all() and (mirrored[..., -1, :] == 0).all()
    assert torch.equal(mirrored, plain.flip(2))


def test_no_flip_by_default():
    clips = clips_from_images([grey_clip(4)], "", 4, **SIZE)
    source = generator()
    assert not any(clips.sample_window(source).flipped for _ in range(50))


def test_flip_warns_where_a_caption_names_a_side():
    two = [grey_clip(4), grey_clip(4)]
    clips = clips_from_images(two, ["a car turns left", "a dog"], 4, flip=True, **SIZE)
    assert len(clips.warnings) == 1
    assert "'clip 1'" in clips.warnings[0] and "turns left" in clips.warnings[0]
    assert not clips_from_images(two, "turns left", 4, flip=False, **SIZE).warnings


def test_captions_of_a_folder(folder):
    (folder / "clip12.txt").write_text("a lamp, {motion}", encoding="utf-8")
    (folder / "clip20.txt").write_text("")
    clips = load_clips(folder, "", 8, **SIZE)
    assert clips.captions == ["grow bright", "a lamp, grow bright", "grow bright"]
    assert [info.caption_source for info in clips.infos] == ["folder", "file", "folder"]
    (warning,) = clips.warnings
    assert all(part in warning for part in ("'clip20.mp4'", "'clip20.txt'", "'grow bright'"))


def test_a_list_of_captions_is_one_for_each_clip(folder):
    (folder / "clip20.txt").write_text("from the file")
    clips = load_clips(folder, ["a {motion}", "", ""], 8, **SIZE)
    assert clips.captions == ["a grow bright", "grow bright", "from the file"]
    assert [info.caption_source for info in clips.infos] == ["given", "folder", "file"]
    for warning, name, used in zip(
        clips.warnings,
        ("clip12.mp4", "clip20.mp4"),
        ("grow bright", "from the file"),
        strict=True,
    ):
        assert f"'{name}'" in warning and f"'{used}'" in warning
    with pytest.raises(ClipError, match="2 .*3 clips"):
        load_clips(folder, ["a", "b"], 8, **SIZE)


def test_a_problem_of_many_clips_is_one_warning():
    (warning,) = clips_from_images([grey_clip(4)] * 5, " ", 4, **SIZE).warnings
    assert warning.startswith("'clip 1' and 4 more")


def test_single_images_are_the_frames_of_one_clip():
    """As from ComfyUI's image dataset loader, each with a caption."""
    batch = grey_clip(9)
    singles = [*batch[:4, None], *batch[4:, None, :24]]  # of two sizes
    texts = ["", "it grows", *[""] * 7]
    clips = clips_from_images(singles, texts, 4, **SIZE)
    assert numbers_of(whole(clips)) == list(range(9))
    assert clips.captions == ["it grows"] and clips.starts(0) == 6
    assert len(clips.warnings) == 1 and "9 single images" in clips.warnings[0]
    assert clips.key(0) == clips_from_images([*singles], "other", 4, **SIZE).key(0)


def test_long_clips_are_read_to_the_cap(folder):
    clips = load_clips([folder / "clip20.mp4"], "", 4, max_frames=9, **SIZE)
    assert numbers_of(whole(clips)) == list(range(9))
    assert "'clip20.mp4' is long (20 frames): only the first 9 are used" in clips.warnings[0]
    exact = load_clips([folder / "clip20.mp4"], "", 4, max_frames=20, **SIZE)
    assert exact.length(0) == 20 and not exact.warnings


def test_clips_keep_their_aspect_ratio(tmp_path):
    frame = np.zeros((48, 96, 3), np.uint8)
    frame[:, :24] = frame[:, 72:] = 255
    write_video(tmp_path / "wide.mp4", [frame] * 4, pixels="yuv444p")
    square = {"width": 32, "height": 32}
    assert whole(load_clips(tmp_path, "", 4, **square)).float().mean() < 12
    bars = whole(load_clips(tmp_path, "", 4, fit="pad", **square)).float()
    assert bars[:, :8].max() == 0 and bars[:, 24:].max() == 0


def test_progress_can_stop_the_reading(folder):
    told = []
    load_clips(folder, "", 8, progress=lambda done, total: told.append((done, total)), **SIZE)
    assert sorted(set(told)) == [(0, 3), (1, 3), (2, 3), (3, 3)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_clips(folder, "", 8, progress=stop, **SIZE)


def test_an_unreadable_clip_stops_and_is_named(folder):
    (folder / "clip9.mp4").write_bytes(b"")
    with pytest.raises(ClipError, match="'clip9.mp4'.*empty"):
        load_clips(folder, "", 8, **SIZE)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_batches(channels):
    clips = clips_from_images([grey_clip(6, channels=channels)], " it  grows ", 4, **SIZE)
    factor = whole(clips).float() / 255
    expected = grey_clip(6) * grey_clip(6) if channels == 4 else grey_clip(6)  # alpha on black
    torch.testing.assert_close(factor, expected.contiguous(), rtol=0, atol=0.6 / 255)
    assert clips.captions == ["it grows"] and clips.infos[0].caption_source == "given"
    assert clips.infos[0].path is None and clips.infos[0].fps is None


def test_image_batches_with_a_known_rate():
    clips = clips_from_images([grey_clip(20)], "", 4, rates=[20.0], fps=10, **SIZE)
    assert numbers_of(whole(clips)) == list(range(0, 20, 2))


def test_bad_image_batches_are_named():
    broken = grey_clip(4).clone()
    broken[2, 3, 4, 1] = float("nan")
    with pytest.raises(ClipError, match="clip 2.*NaN"):
        clips_from_images([grey_clip(4), broken], "", 4, **SIZE)
    with pytest.raises(ClipError, match=r"clip 1.*\(4, 48, 64\)"):
        clips_from_images([torch.zeros(4, 48, 64)], "", 4, **SIZE)
    with pytest.raises(ClipError, match="2 .*3 clips"):
        clips_from_images([grey_clip(4)] * 3, ["a", "b"], 4, **SIZE)
    with pytest.raises(ClipError, match="1 .*2 clips"):
        clips_from_images([grey_clip(4)] * 2, "a", 4, rates=[8.0], **SIZE)
    with pytest.raises(ClipError, match="'clip 1'.* 4 .* 16"):
        clips_from_images([grey_clip(4)], "", **SIZE)
    with pytest.raises(ClipError, match="0"):
        clips_from_images([], "")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"frames": 1}, "2 frames, not 1"),
        ({"width": 500}, "width .*500"),
        ({"stride": 0}, "stride .* 0"),
        ({"fps": 0.0}, "frame rate .* 0"),
        ({"short": "drop"}, "'drop' for short"),
        ({"fit": "fill"}, "'fill' for fit"),
    ],
)
def test_bad_settings_are_named(folder, setting, words):
    with pytest.raises(LampError, match=words):
        load_clips(folder, "", **{"frames": 8, **SIZE, **setting})


def test_report(folder):
    (folder / "clip12.txt").write_text("a lamp")
    clips = load_clips(folder, "", 4, fps=5, **SIZE)
    head, first, second, third, legend, *rest = describe_clips(clips).splitlines()
    assert head == "3 clips, 11 windows of 4 frames, stride 1, 64 x 48, 5 fps"
    assert first.startswith("1. clip8.mp4: 64 x 48, 10 fps, 4 frames of 8, 1 window, ")
    assert "'a lamp' (file)" in second and "'grow bright' (folder)" in third
    # two steps of 8 grey levels from frame to frame
    assert float(first.split("change ")[1].split(" %")[0]) == pytest.approx(1600 / 255, abs=0.3)
    assert "frame" in legend
    assert not rest


def test_the_report_warns_of_still_clips():
    still = torch.full((4, 48, 64, 3), 0.5)
    report = describe_clips(clips_from_images([still, grey_clip(4)], "", 4, **SIZE))
    assert "Warning: 'clip 1'" in report
    assert "Warning: 'clip 2'" not in report


def test_contact_sheet():
    clips = clips_from_images([grey_clip(12), grey_clip(3)], "", 3, **SIZE)
    sheet = contact_sheet(clips)
    assert sheet.shape[0] == 1 and sheet.shape[3] == 3 and sheet.dtype == torch.float32
    assert 0 <= sheet.min() and sheet.max() <= 1
    left = [sheet[0, 50, 10 + 132 * column, 0].item() * 255 for column in range(6)]
    assert left == pytest.approx([8 * n + 4 for n in (0, 2, 4, 7, 9, 11)], abs=0.5)
    assert sheet[0, 150, 132 * 3 + 20].max() == 0  # the second clip has only three frames


def test_contact_sheet_of_many_clips_stays_small():
    sheet = contact_sheet(clips_from_images([grey_clip(2)] * 50, "", 2, **SIZE))
    assert sheet.shape[1] < 3500


def test_real_clips(shared_dir):
    clips = load_clips(shared_dir / "data" / "clips" / "horse_run")
    assert clips.captions == ["horse run"] * 3
    assert [whole(clips, clip).shape for clip in range(3)] == [(16, 320, 512, 3)] * 3
    assert len(clips.windows()) == 3
    assert not clips.warnings


def test_numbered_frames_encode_their_numbers():
    """A check of the test helper itself."""
    frames = torch.stack([torch.from_numpy(numbered_frame(number)) for number in (3, 0, 29)])
    assert numbers_of(frames) == [3, 0, 29]
