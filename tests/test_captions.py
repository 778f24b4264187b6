"""Captions beside the clips, and what stands in for them."""

from pathlib import Path

import pytest

from lamp.captions import find_caption, given_caption, motion_from_folder, names_a_side
from lamp.errors import ClipError


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "horse_run"
    folder.mkdir()
    return folder / "clip.one.mp4"


def write(clip: Path, content: bytes) -> Path:
    clip.with_name("clip.one.txt").write_bytes(content)
    return clip


@pytest.mark.parametrize(
    ("folder", "motion"),
    [
        ("clips/horse_run", "horse run"),
        ("clips/horse_run/", "horse run"),
        (r"C:\My clips\horse__run" + "\\", "horse run"),
        (r"C:\clips/play_the_guitar", "play the guitar"),
        (Path("/data/骑_自行车"), "骑 自行车"),
    ],
)
def test_motion_from_folder(folder, motion):
    assert motion_from_folder(folder) == motion


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_file_with_and_without_byte_order_mark(clip, mark):
    write(clip, mark + "ein Pferd läuft,\r\n  马 \n".encode())
    assert find_caption(clip, "run") == ("ein Pferd läuft, 马", "file", "")


def test_fallbacks(clip):
    assert find_caption(clip, " a horse\n runs ") == ("a horse runs", "prompt", "")
    assert find_caption(clip) == ("horse run", "folder", "")


@pytest.mark.parametrize("content", [b"", b" \r\n\t", b"\xef\xbb\xbf\n"])
def test_empty_file_falls_back_with_a_warning(clip, content):
    caption = find_caption(write(clip, content), "a horse runs")
    assert (caption.text, caption.source) == ("a horse runs", "prompt")
    assert "'clip.one.txt' is empty: 'a horse runs' is used" in caption.warning


def test_motion_template(clip):
    write(clip, b"a white horse, {motion}, on {grass}")
    assert find_caption(clip, "it runs").text == "a white horse, it runs, on {grass}"
    assert find_caption(clip).text == "a white horse, horse run, on {grass}"
    assert find_caption(clip, "slow {motion}").text == "a white horse, slow horse run, on {grass}"


def test_a_given_caption_goes_before_the_file(clip):
    write(clip, b"from the file")
    assert given_caption(" a dog\n{motion}s ", clip) == ("a dog horse runs", "given", "")
    assert given_caption("a dog") == ("a dog", "given", "")


def test_for_an_empty_given_caption_stands_what_the_file_has(clip):
    found = given_caption(" ", clip)
    assert found == ("horse run", "folder", "The given caption is empty: 'horse run' is used.")
    assert given_caption("", write(clip, b"a dog runs"))[:2] == ("a dog runs", "file")
    assert given_caption("") == ("", "given", "The given caption is empty.")


def test_a_template_without_a_motion(clip):
    found = given_caption("a dog, {motion}")
    assert found.text == "a dog," and "{motion}" in found.warning


def test_folder_of_images(tmp_path):
    folder = tmp_path / "walk" / "take 1.5"
    folder.mkdir(parents=True)
    (tmp_path / "walk" / "take 1.5.txt").write_text("a man walks")
    assert find_caption(folder).text == "a man walks"


def test_a_file_that_is_no_caption_is_refused_by_its_size(clip):
    clip.with_suffix(".txt").write_text("a " * 60_000)
    with pytest.raises(ClipError, match="'.*txt' has 120,000 bytes, a caption at most 100,000"):
        find_caption(clip, "it runs")


def test_other_encodings_are_refused_by_name(clip):
    write(clip, "läuft".encode("latin-1"))
    with pytest.raises(ClipError, match="'clip.one.txt' is not UTF-8"):
        find_caption(clip)


@pytest.mark.parametrize(
    ("caption", "sided"),
    [
        ("a car turns Left", True),
        ("moves rightwards", True),
        ("the clock turns counter-clockwise", True),
        ("向左转", True),
        ("a bright light, all rights reserved", False),
        ("the leftover", False),
        ("", False),
    ],
)
def test_sides(caption, sided):
    assert names_a_side(caption) is sided
