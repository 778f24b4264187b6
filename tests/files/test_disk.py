"""Full disks, read-only folders and files that cannot be replaced, for everything that writes."""

from __future__ import annotations

import ast
import errno
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lamp.errors import LampError
from lamp.files.atomic import write_file
from lamp.files.lock import alone_in, new_folder
from lamp.method.architecture import ConvSite, SiteMap
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import load_motion_file, save_motion
from lamp.training.loop import StepReport
from lamp.training.samples import save_animation, save_loss_plot
from lamp.training.session import RunFolder
from lamp.training.state import TrainingState, write_state
from tests.helpers.disks import as_nobody, full_disk, open_to_all

ROOT = Path(__file__).resolve().parents[2]
SITES = SiteMap((ConvSite("conv_in", "conv_in", 24),), (), (), (), "sd1")


@dataclass(frozen=True)
class Site:
    """Something that writes a file; `write` gets a number that the content depends on."""

    name: str
    write: Callable[[Path, int], object]


def _motion(path: Path, number: int) -> None:
    state = {name: torch.full_like(t, number) for name, t in Motion(SITES).state_dict().items()}
    save_motion(path, state, MotionConfig("sd1", steps=number))


def _state(path: Path, number: int) -> None:
    write_state(path, TrainingState({"motion.a": torch.full((999,), number)}, {"step": number}))


SITES_OF_FILES = {
    "motion": Site("m.safetensors", _motion),
    "state": Site("state-step000001.safetensors", _state),
    "plot": Site("loss.png", lambda path, n: save_loss_plot(path, [float(n)] * 9, [])),
    "sample": Site("s.webp", lambda path, n: save_animation(path, torch.rand(3, 16, 16, 3), 8.0)),
}
sites = pytest.mark.parametrize("site", SITES_OF_FILES.values(), ids=SITES_OF_FILES)


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def first(site: Site, folder: Path) -> dict[str, bytes]:
    site.write(folder / site.name, 1)
    before = kept(folder)
    assert list(before) == [site.name]
    return before


@sites
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_full_disk_is_an_error_and_changes_nothing(
    site: Site, share: float, tmp_path: Path
) -> None:
    before = first(site, tmp_path)
    room = int(share * len(before[site.name]))
    with full_disk(room), pytest.raises(LampError, match=f"{site.name}.*disk space"):
        site.write(tmp_path / site.name, 2)
    assert kept(tmp_path) == before
    site.write(tmp_path / site.name, 2)
    assert kept(tmp_path) != before and len(kept(tmp_path)) == 1


@sites
def test_a_read_only_folder_is_named(site: Site) -> None:
    with open_to_all() as folder:
        before = first(site, folder)
        os.chmod(folder, 0o555)
        sentence = f"Permission denied.*{folder}"
        with as_nobody(), pytest.raises(LampError, match=sentence):
            site.write(folder / site.name, 2)
        with as_nobody(), pytest.raises(LampError, match="Permission denied"):
            site.write(folder / "new" / site.name, 2)
        assert kept(folder) == before


@sites
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_failed_rename_leaves_the_old_file(
    site: Site, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise OSError(number, os.strerror(number), str(target))

    before = first(site, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(LampError) as refused:
        patch.setattr(os, "replace", refuse)
        site.write(tmp_path / site.name, 2)
    right = number == errno.EROFS
    assert (str(tmp_path) in str(refused.value).partition("permission")[2]) is right
    assert ("disk space" in str(refused.value)) is not right
    assert kept(tmp_path) == before


@sites
def test_a_file_open_in_another_program_gets_another_name(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a file that another program reads cannot be replaced."""

    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(errno.EACCES, "used by another process", str(target))

    before = first(site, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        site.write(tmp_path / site.name, 2)
    after = kept(tmp_path)
    assert before.items() <= after.items() and len(after) == len(before) + 1
    assert any("-2." in name for name in after)


def test_simultaneous_writers_never_overwrite_each_other(tmp_path: Path) -> None:
    def put(number: int) -> Path:
        return write_file(
            tmp_path / "m.safetensors", lambda path: path.write_text(str(number)), replace=False
        )

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(put, range(40)))
    assert [path.read_text() for path in made] == [str(number) for number in range(40)]
    names = {"m.safetensors", *(f"m-{number}.safetensors" for number in range(2, 41))}
    assert {path.name for path in made} == names == set(os.listdir(tmp_path))


@pytest.fixture(params=["links", "no links"])
def any_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with hard links, and one without, such as a stick with FAT."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("any_disk")
def test_a_new_motion_never_overwrites_another(tmp_path: Path) -> None:
    made = []
    for number, name in enumerate(("m", "m-2", "m-3"), start=1):
        state = {n: torch.full_like(t, number) for n, t in Motion(SITES).state_dict().items()}
        made.append(save_motion(tmp_path / "m.safetensors", state, MotionConfig("sd1"), new=True))
        assert made[-1].name == f"{name}.safetensors" and len(os.listdir(tmp_path)) == number
    for number, path in enumerate(made, start=1):
        state = load_motion_file(path).state
        assert all((tensor == number).all() for tensor in state.values())


@pytest.mark.usefixtures("any_disk")
def test_writers_at_the_same_time_do_not_overwrite_each_other(tmp_path: Path) -> None:
    writers = 8
    for each in range(20):
        barrier, path = threading.Barrier(writers), tmp_path / f"m{each}.bin"

        def write(text: str, barrier: Any = barrier, path: Path = path) -> Path:
            def content(temporary: Path) -> None:
                temporary.write_text(text)
                barrier.wait()

            return write_file(path, content, replace=False)

        texts = [str(number) for number in range(writers)]
        with ThreadPoolExecutor(writers) as pool:
            made = list(pool.map(write, texts))
        assert [path.read_text() for path in made] == texts


# --- logs that fail -------------------------------------------------------------------------------


def _report(step: int) -> StepReport:
    return StepReport(step, 9, 0.5, 1e-3, 0.1)


def test_a_broken_log_is_warned_of_once_and_read_up_to_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path, {})
    run.log(_report(1))
    size = (tmp_path / "log.jsonl").stat().st_size
    with full_disk(size + size // 2):
        for step in (2, 3, 4):
            run.log(_report(step))
    run.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert tmp_path.name in caplog.text
    again = RunFolder(tmp_path, {})
    again.forget_after(3)
    again.log(_report(4))
    again.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]


def test_a_broken_tensorboard_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard.py").write_text("raise TypeError('Descriptors cannot be created')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [name for name in sys.modules if "tensorboard" in name]:
        monkeypatch.delitem(sys.modules, module)
    run = RunFolder(tmp_path / "run", {})
    for step in (1, 2):
        run.log(_report(step))
    run.close()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    (record,) = caplog.records
    assert "TensorBoard" in record.message and "Descriptors cannot be created" in record.message


def test_a_log_that_cannot_be_rewritten_stays_unchanged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path, {})
    for step in range(1, 6):
        run.log(_report(step))
    run.close()
    before = (tmp_path / "log.jsonl").read_bytes()
    with full_disk(50):
        again = RunFolder(tmp_path, {})
        again.forget_after(2)
        again.log(_report(3))
    assert (tmp_path / "log.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    assert len(caplog.records) == 1


def test_a_training_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    with alone_in(tmp_path):  # the lock's library is imported here: nobody else may read it
        pass
    with open_to_all() as folder:
        os.chmod(folder, 0o555)
        named = f"run_00001.*{folder}"
        with as_nobody(), pytest.raises(LampError, match=named):
            new_folder(folder / "run_00001")
        with as_nobody(), alone_in(folder):  # runs without a lock
            assert not os.listdir(folder)


# --- all of them ----------------------------------------------------------------------------------

_WRITING = {"save_file", "write_text", "write_bytes", "mkdir", "makedirs", "touch", "symlink_to"}
# Where each module that writes is tested.
_TRIED = {
    "lamp/cli/share.py": "tests/cli/test_share.py",
    "lamp/hosts/comfy/toy.py": "a temporary file of one call",
    "lamp/training/compare.py": "here and tests/training/test_compare.py",
    "lamp/files/cache.py": "tests/files/test_cache.py, disks that fail",
    "lamp/motion_file/file.py": "here",
    "lamp/files/atomic.py": "here",
    "lamp/files/lock.py": "here and tests/files/test_run_lock.py",
    "lamp/training/session.py": "here and tests/training/test_faults.py",
    "lamp/training/state.py": "here and tests/training/test_faults.py",
    "nodes/model_paths.py": "tests/nodes/test_nodes_motion.py",
}


def _writes(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name == "replace":
        return ast.unparse(call.func) == "os.replace"
    if name == "open":
        modes = [*call.args, *(word.value for word in call.keywords)]
        texts = [each.value for each in modes if isinstance(each, ast.Constant)]
        return any(set(str(text)) & set("wax+") and len(str(text)) < 4 for text in texts)
    if name == "save":  # of a picture, to a name
        return bool(call.args) and ast.unparse(call.args[0]) != "stream"
    return name in _WRITING


def test_everything_that_writes_is_tested() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for place in ("lamp", "nodes")
        for path in (ROOT / place).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _writes(node)
    }
    assert found == set(_TRIED)
