"""Caption files beside the clips, and their fallbacks."""

import unicodedata
from pathlib import Path

import pytest

from lamp.clips.captions import find_caption, given_caption, motion_from_folder, names_a_side
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
    assert "'clip.one.txt'" in caption.warning and "'a horse runs'" in caption.warning


def test_motion_template(clip):
    write(clip, b"a white horse, {motion}, on {grass}")
    assert find_caption(clip, "it runs").text == "a white horse, it runs, on {grass}"
    assert find_caption(clip).text == "a white horse, horse run, on {grass}"
    assert find_caption(clip, "slow {motion}").text == "a white horse, slow horse run, on {grass}"


def test_a_given_caption_overrides_the_file(clip):
    write(clip, b"from the file")
    assert given_caption(" a dog\n{motion}s ", clip) == ("a dog horse runs", "given", "")
    assert given_caption("a dog") == ("a dog", "given", "")


def test_an_empty_given_caption_falls_back_to_the_file(clip):
    found = given_caption(" ", clip)
    assert found[:2] == ("horse run", "folder") and "'horse run'" in found.warning
    assert given_caption("", write(clip, b"a dog runs"))[:2] == ("a dog runs", "file")
    assert given_caption("")[:2] == ("", "given") and given_caption("").warning


def test_a_template_without_a_motion(clip):
    found = given_caption("a dog, {motion}")
    assert found.text == "a dog," and "{motion}" in found.warning


def test_folder_of_images(tmp_path):
    folder = tmp_path / "walk" / "take 1.5"
    folder.mkdir(parents=True)
    (tmp_path / "walk" / "take 1.5.txt").write_text("a man walks")
    assert find_caption(folder).text == "a man walks"


def test_a_large_caption_file_is_refused(clip):
    clip.with_suffix(".txt").write_text("a " * 60_000)
    with pytest.raises(ClipError, match="'.*txt' .*120,000 .*100,000"):
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


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
@pytest.mark.parametrize("clip_form", ["NFC", "NFD"])
def test_a_caption_is_found_in_every_unicode_form(
    tmp_path: Path, form: str, clip_form: str
) -> None:
    """macOS stores letters and accents separately, other systems combined."""
    name = "Rösslein é 가나다 ś"
    clip = tmp_path / f"{unicodedata.normalize(clip_form, name)}.mp4"
    clip.touch()
    text = clip.with_name(f"{unicodedata.normalize(form, name)}.txt")
    text.write_text("a little horse", encoding="utf-8")
    assert find_caption(clip, "x").text == "a little horse"


@pytest.mark.parametrize("name", ["clip.one.TXT", "CLIP.ONE.txt", "Clip.One.Txt",
                                  "clip.one.caption", "clip.one.CAPTION"])  # fmt: skip
def test_a_caption_is_found_in_any_case_and_with_other_extensions(clip: Path, name: str) -> None:
    clip.with_name(name).write_text("it is found")
    assert find_caption(clip, "x") == ("it is found", "file", "")


def test_the_exact_name_wins_between_two_captions(clip: Path) -> None:
    clip.with_name("CLIP.ONE.txt").write_text("other")
    clip.with_name("clip.one.caption").write_text("second")
    clip.with_name("clip.one.txt").write_text("first")
    if len(list(clip.parent.iterdir())) < 3:
        pytest.skip("this disk knows no case")
    assert find_caption(clip, "x").text == "first"
    clip.with_name("clip.one.txt").unlink()
    assert find_caption(clip, "x").text == "second"  # by its very name
    clip.with_name("clip.one.caption").unlink()
    assert find_caption(clip, "x").text == "other"


@pytest.mark.parametrize("text", ["a horse", "ein Pferd läuft", "马在跑"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32", "utf-32-le"])
def test_utf_16_needs_a_byte_order_mark(clip: Path, text: str, encoding: str) -> None:
    data = text.encode(encoding)
    write(clip, data)
    if encoding == "utf-16":
        assert find_caption(clip, "x") == (text, "file", "")
        write(clip, b"\xfe\xff" + text.encode("utf-16-be"))
        assert find_caption(clip, "x").text == text
        return
    with pytest.raises(ClipError, match="'clip.one.txt'"):
        find_caption(clip, "x")


@pytest.mark.parametrize("data", [b"a\0b", b"\0" * 40, b"a horse \x1b[31m", b"\x7fELF\x01\x01",
                                  b"a\x08\x08", "a \x85\x9b b".encode()])  # fmt: skip
def test_control_characters_are_refused(clip: Path, data: bytes) -> None:
    with pytest.raises(ClipError, match="'clip.one.txt'"):
        find_caption(write(clip, data), "x")


@pytest.mark.parametrize("text", ["\u200b", "\u200b\u200c\u200d\u2060\ufeff", " \u00ad\u200e\n",
                                  "\u3164", "\u2800 \u2800", "\U000e0020"])  # fmt: skip
def test_an_invisible_caption_is_empty(clip: Path, text: str) -> None:
    found = find_caption(write(clip, text.encode()), "a horse runs")
    assert (found.text, found.source) == ("a horse runs", "prompt") and found.warning
    assert given_caption(text, clip).warning
    assert find_caption(clip.with_name("other.mp4"), text).source == "folder"


def test_joining_characters_are_kept(clip: Path) -> None:
    text = "می\u200cدود, \U0001f468\u200d\U0001f33e"
    assert find_caption(write(clip, text.encode()), "x").text == text
