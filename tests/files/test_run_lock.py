"""Two trainings at the same time never share a folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lamp.cli import DONE, FAILED, main
from lamp.errors import LampError
from lamp.files.lock import alone_in, new_folder
from lamp.motion_file.file import load_motion_file
from lamp.training.state import read_state
from tests.helpers.toy_runs import write_config

ROOT = Path(__file__).resolve().parents[2]


def test_simultaneous_runs_get_separate_folders(tmp_path: Path) -> None:
    first = tmp_path / "horses" / "run_00007"
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: new_folder(first), range(40)))
    assert sorted(path.name for path in made) == [f"run_{number:05}" for number in range(7, 47)]
    assert all(path.is_dir() and path.parent == first.parent for path in made)


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LampError, match=r"run_00001.*\bfile\b"):
        new_folder(tmp_path / "file" / "run_00001")


_HOLD = """
import sys
from pathlib import Path
from lamp.files.lock import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_holds_its_folder_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run_00001"
    for end in (lambda process: process.communicate(), lambda process: process.kill()):
        command = [sys.executable, "-c", _HOLD, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            with (
                pytest.raises(LampError, match="run_00001"),
                alone_in(folder),
            ):
                pytest.fail("two in one folder")
            end(other)
            other.wait()
        with alone_in(folder), alone_in(tmp_path / "run_00002"):
            pass


@pytest.mark.skipif(os.name == "nt", reason="fcntl is POSIX only")
def test_a_disk_without_locks_or_write_permission_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    ran = []
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        with alone_in(tmp_path):
            ran.append("no locks")
    (tmp_path / "file").touch()
    with alone_in(tmp_path / "file"):
        ran.append("no folder")
    assert ran == ["no locks", "no folder"]


@pytest.mark.slow
def test_trainings_with_the_same_name_do_not_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both choose a free folder before either has created it."""
    pytest.importorskip("diffusers")
    from lamp.cli import place, train_run

    output = tmp_path / "output"
    changes = ["--set", "recipe.steps=1", "--set", "output.save_every=1"]
    command = ["train", str(write_config(tmp_path)), *changes]
    with monkeypatch.context() as patch:
        first = output / "right_00001"
        patch.setattr(train_run, "find_place", lambda *_: place.Place(first, first))
        assert [main(command), main(command)] == [DONE, DONE]
    assert sorted(path.name for path in output.iterdir()) == [
        "right_00001", "right_00001.safetensors", "right_00002", "right_00002.safetensors"
    ]  # fmt: skip
    one, other = (load_motion_file(output / f"right_0000{n}.safetensors") for n in (1, 2))
    assert all(torch.equal(other.state[name], tensor) for name, tensor in one.state.items())
    for run in (output / "right_00001", output / "right_00002"):
        assert len((run / "log.jsonl").read_text().splitlines()) == 1
        assert [read_state(path).step for path in run.glob("state*")] == [1]

    resume = [*command, "--set", "recipe.steps=2", "--set", "output.resume=latest"]
    before = sorted(output.rglob("*"))
    with alone_in(output / "right_00001"), alone_in(output / "right_00002"):
        assert main(resume) == FAILED
    assert "right_00002" in capsys.readouterr().err
    assert sorted(output.rglob("*")) == before
    assert main(resume) == DONE
