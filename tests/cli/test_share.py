"""`python -m lamp share`: a folder to upload."""

from __future__ import annotations

import errno
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.samples.small_training import small_host
from lamp.cli import DONE, FAILED, main, share
from lamp.files import atomic
from lamp.motion_file.card import motion_card
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import RUN_KEY, MotionFile, load_motion_file, save_motion
from lamp.motion_file.provenance import LICENSE_KEY, TRAINING_KEY
from tests.helpers.disks import full_disk
from tests.helpers.small_models import random_motion

CONFIG = MotionConfig(
    "text16", 8, 256, 192, 12.0, prompt="a horse runs", captions=["a horse runs"] * 3, steps=70
)


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion with the workflow that trained it, and a sample beside it."""
    state = random_motion(small_host().unet).state_dict()
    extra = {TRAINING_KEY: json.dumps({"min_snr": 5.5}), "workflow": '{"private": 1}'}
    path = tmp_path_factory.mktemp("motion") / "horse_00001.safetensors"
    save_motion(path, state, CONFIG, extra=extra)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (16, 24, 3), np.uint8)) for _ in range(4)]
    sample = path.parent / "horse_00001/sample-step000070.webp"
    sample.parent.mkdir()
    pictures[0].save(sample, save_all=True, append_images=pictures[1:], duration=80)
    return path


@pytest.mark.slow
def test_the_folder_holds_all_that_a_site_wants(motion: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new/upload"
    assert main(["share", str(motion), str(folder), "--license", "CC-BY-4.0"]) == DONE
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "horse_00001.safetensors", "horse_00001.webp",
    ]  # fmt: skip
    file = load_motion_file(folder / "horse_00001.safetensors")
    assert (folder / file.name).stat().st_size < 0.5 * motion.stat().st_size
    assert file.metadata[LICENSE_KEY] == "CC-BY-4.0"
    assert file.metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    with Image.open(folder / "horse_00001.webp") as preview:
        assert preview.n_frames == 4 and preview.size == (24, 16)
        embedded = preview.getexif()[0x010F]
    assert embedded == f"workflow:{file.metadata['workflow']}"
    nodes = {node["type"]: node for node in json.loads(file.metadata["workflow"])["nodes"]}
    assert nodes["LAMP_LoadMotion"]["widgets_values"][0] == "horse_00001.safetensors"
    assert nodes["LAMP_FirstFrameCondition"]["widgets_values"][:3] == [256, 192, 8]
    assert "private" not in file.metadata["workflow"]
    page = (folder / "README.md").read_text()
    for part in ("license: cc-by-4.0", "a horse runs", "8 frames, 256 x 192, 12 fps", "3 clips",
                 "5.5", "70", "(horse_00001.webp)"):  # fmt: skip
        assert part in page, part


def test_a_compact_motion_is_not_coded_again(motion: Path, tmp_path: Path) -> None:
    """It would lose, and a motion of a low rank would even grow."""
    state = load_motion_file(motion).state
    name = next(name for name in state if name.endswith("attn_temp.to_q.weight"))
    up, down = torch.rand(2, len(state[name])), torch.rand(2, len(state[name][0]))
    path = tmp_path / "rank_00001.safetensors"
    extra = {"workflow": "private", RUN_KEY: "run", "lamp.start": "[]"}
    save_motion(path, state, CONFIG, factors={name: (up, down)}, extra=extra)
    given = ["share", str(path), str(tmp_path / "up"), "--license", "CC0-1.0"]
    assert main(given) == DONE
    wanted, found = load_motion_file(path), load_motion_file(tmp_path / "up" / path.name)
    assert found.config == wanted.config
    assert all(torch.equal(found.state[name], each) for name, each in wanted.state.items())
    assert found.metadata[LICENSE_KEY] == "CC0-1.0" and "lamp.start" in found.metadata
    assert RUN_KEY not in found.metadata and "private" not in found.metadata["workflow"]


def test_nothing_is_overwritten_and_full_files_stay_full(motion: Path, tmp_path: Path) -> None:
    given = ["share", str(motion), str(tmp_path / "up"), "--full"]
    assert main(given) == DONE
    wanted = load_motion_file(motion).state
    found = load_motion_file(tmp_path / "up" / motion.name).state
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert main(given) == FAILED


def test_a_preview_that_is_none_is_named(motion: Path, tmp_path: Path, capsys: Any) -> None:
    broken = tmp_path / "broken.webp"
    broken.write_bytes(b"no picture")
    given = ["share", str(motion), str(tmp_path / "up"), "--preview", str(broken)]
    assert main(given) == FAILED
    assert "broken.webp" in capsys.readouterr().err
    assert not (tmp_path / "up").exists()


def test_the_page_names_only_what_is_there() -> None:
    file = MotionFile({}, CONFIG, {}, "horse.safetensors")
    assert "preview" not in motion_card(file).lower()
    assert "the preview" in motion_card(file, "horse.webp")


def test_the_picture_of_any_name_is_found() -> None:
    page = motion_card(MotionFile({}, CONFIG, {}, "a.safetensors"), "horse #2 (50 %) [a].webp")
    (address,) = re.findall(r"!\[Preview\]\((\S+)\)", page)
    assert unquote(urlsplit(address).path) == "horse #2 (50 %) [a].webp"


def test_a_motion_without_training_of_its_own_has_no_steps() -> None:
    merged = replace(CONFIG, steps=0)
    assert "steps" not in motion_card(MotionFile({}, merged, {}, "a.safetensors"))
    assert "steps" in motion_card(MotionFile({}, replace(merged, steps=9), {}, "a.safetensors"))


@pytest.mark.parametrize(
    "path", ["/home/me/secret/a b.safetensors", "C:\\me\\secret\\a b.safetensors"]
)
def test_the_page_names_no_folder(path: str) -> None:
    settings = {TRAINING_KEY: json.dumps({"start_from": path})}
    page = motion_card(MotionFile({}, CONFIG, settings, "horse.safetensors"))
    assert "secret" not in page and "a b.safetensors" in page


def test_texts_of_the_file_are_no_markup() -> None:
    evil = "<script>|[x](javascript:y)\n# title `code`"
    file = MotionFile({}, replace(CONFIG, prompt=evil, captions=[evil]), {}, "a`b.safetensors")
    page = motion_card(file)
    assert "<script>" not in page.replace("\\<script\\>", "")
    assert "[x]" not in page.replace("\\[x\\]", "")
    assert "\n# title" not in page
    damaged = replace(file, metadata={TRAINING_KEY: "[" * 9999, LICENSE_KEY: "mine: all\n- x"})
    assert "license: other" in motion_card(damaged) and "70" in motion_card(damaged)


def test_a_full_disk_is_an_error_and_leaves_no_part_of_a_file(
    motion: Path, tmp_path: Path, capsys: Any
) -> None:
    with full_disk(0):
        assert main(["share", str(motion), str(tmp_path), "--full"]) == FAILED
    assert "disk space" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".webp", ".md"])
@pytest.mark.parametrize("killed", [False, True])
def test_it_can_be_repeated_after_a_failure(
    motion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, killed: bool
) -> None:
    whole = atomic.write_file

    def refuse(path: Path, *given: Any, **more: Any) -> Path:
        if path.suffix == suffix:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write_file", refuse)
        if killed:  # nothing is cleaned up then
            patch.setattr(share.shutil, "rmtree", lambda *given, **more: None)
            patch.setattr(Path, "unlink", lambda *given, **more: None)
        assert main(["share", str(motion), str(tmp_path), "--full"]) == FAILED
    assert killed == any(tmp_path.iterdir())
    assert main(["share", str(motion), str(tmp_path), "--full"]) == DONE
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["README.md", "horse_00001.webp"])
def test_other_files_of_the_folder_stay(
    motion: Path, tmp_path: Path, capsys: Any, name: str
) -> None:
    """Such as the page of another motion that was shared into it."""
    (tmp_path / name).write_text("mine")
    assert main(["share", str(motion), str(tmp_path), "--full"]) == FAILED
    assert name in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / name).rename(tmp_path / "other.md")
    assert main(["share", str(motion), str(tmp_path), "--full"]) == DONE


@pytest.mark.parametrize(
    ("file", "run"),
    [
        ("ours/horse_00001{}", "ours/horse_00001"),
        ("app/models/lamp_motion/horse_00001{}", "app/output/lamp_training/horse_00001"),
        ("app/models/lamp_motion/a b/马_00001{}", "app/output/lamp_training/a b/马_00001"),
    ],
)
def test_the_preview_is_the_sample_of_the_motions_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, run: str
) -> None:
    for step in (20, 100):
        sample = tmp_path / run / f"sample-step{step:06}.webp"
        sample.parent.mkdir(parents=True, exist_ok=True)
        sample.touch()
    marks = ("", "-best", "-step000020", "-step000020-stopped", "-step000020_00001")
    for place in (tmp_path, Path()):  # also relative to the current folder
        monkeypatch.chdir(tmp_path)
        for mark in marks:
            path = place / f"{file.format(mark)}.safetensors"
            for step, wanted in {20: 20, 99: 20, 150: 100}.items():
                found = share.newest_sample(path, step)
                assert found is not None and found.stem.endswith(f"{wanted:06}"), (mark, step)
            assert share.newest_sample(path, 19) is None
            other = path.with_name(path.name.replace("00001", "00002", 1))
            assert share.newest_sample(other, 150) is None
