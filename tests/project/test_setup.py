"""What `make setup` lays out, and how the tests get at ComfyUI and at the pack."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from scripts import run_host, setup_host
from scripts.installing import SetupFailed
from scripts.server import host


def test_the_base_directory_holds_the_pack_as_a_link(tmp_path: Path) -> None:
    base = host.make_base_directory(tmp_path / "base")
    host.make_base_directory(base)
    assert (base / "custom_nodes" / host.PACK_FOLDER).resolve() == host.ROOT
    assert (base / "models" / "lamp_motion").is_dir()


def test_a_link_to_another_checkout_is_turned(tmp_path: Path) -> None:
    nodes = tmp_path / "custom_nodes"
    nodes.mkdir()
    (nodes / host.PACK_FOLDER).symlink_to(tmp_path / "gone", target_is_directory=True)
    host.make_base_directory(tmp_path)
    assert (nodes / host.PACK_FOLDER).resolve() == host.ROOT


def test_the_pack_is_copied_where_links_are_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    source = tmp_path / "source"
    for name in ("lamp", "build", ".venv"):
        (source / name).mkdir(parents=True)
    (source / "__init__.py").write_text("one = 1\n")
    monkeypatch.setattr(host, "ROOT", source)
    base = tmp_path / "base"
    host.make_base_directory(base)
    (source / "__init__.py").write_text("two = 2\n")
    host.make_base_directory(base)
    copy = base / "custom_nodes" / host.PACK_FOLDER
    assert sorted(p.name for p in copy.iterdir()) == ["__init__.py", "lamp"]
    assert (copy / "__init__.py").read_text() == "two = 2\n"


def test_a_wrong_comfyui_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(host.HostMissing, match="COMFYUI_PATH") as error:
        host.host_path()
    assert str(tmp_path) in str(error.value)


def test_a_step_runs_again_only_for_new_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_host, "DONE", tmp_path / "done.json")
    runs: list[str] = []

    def fail() -> None:
        raise SetupFailed("no network")

    with pytest.raises(SetupFailed):
        setup_host.step("tools", "tools", ["a"], fail)
    setup_host.step("tools", "tools", ["a"], lambda: runs.append("first"))
    setup_host.step("tools", "tools", ["a"], lambda: runs.append("again"))
    setup_host.step("tools", "tools", ["a", "b"], lambda: runs.append("changed"))
    assert runs == ["first", "changed"]


def test_comfyui_and_the_repository_keep_their_names(comfy: ModuleType) -> None:
    where = {
        name: Path(importlib.import_module(name).__file__ or "")
        for name in ("nodes", "folder_paths", "utils.extra_config", "lamp", "scripts.server.host")
    }
    for name in ("nodes", "folder_paths", "utils.extra_config"):
        assert host.host_path() in where[name].parents, name
    assert where["lamp"].parent == host.ROOT / "lamp"
    assert where["scripts.server.host"].parent == host.ROOT / "scripts" / "server"
    assert importlib.import_module("tests.conftest").shared_dir


def test_the_packs_lamp_is_the_lamp_that_tests_import(comfy: ModuleType) -> None:
    host.load_pack()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alias = importlib.import_module("comfyui_lamp.lamp.method.motion")
    module = importlib.import_module("lamp.method.motion")
    assert alias is module
    assert module.__spec__ is not None and module.__spec__.name == "lamp.method.motion"


def make_host(folder: Path, requirements: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "7.8.9"\n')
    (folder / "requirements.txt").write_text(requirements)
    return folder


def test_a_host_whose_packages_are_missing_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("torch", "no-such-package>=2 # sound", "", "#optional:", "--pre", "not-here; 1 < 0")
    monkeypatch.setenv("COMFYUI_PATH", str(make_host(tmp_path, "\n".join(lines))))
    with pytest.raises(host.HostMissing) as error:
        host.ready_host()
    message = str(error.value)
    assert all(part in message for part in ("no-such-package", "7.8.9", str(tmp_path)))
    assert "not-here" not in message and "torch," not in message
    make_host(tmp_path, "torch\n")
    assert host.ready_host() == tmp_path


@pytest.fixture
def pip_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What setup asks of pip, none of which is done."""
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(setup_host, "DONE", tmp_path / "done.json")
    monkeypatch.setattr(setup_host, "pip", lambda *arguments: calls.append(arguments))
    versions = {"torch": "2.90.0+cu150", "torchaudio": "2.11.1+cu130"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    return calls


def test_requirements_are_installed_as_the_host_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip_calls: list[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(setup_host, "can_import", lambda _: True)
    folder = make_host(tmp_path / "host", "torch\ntorchaudio\n\n#optional:\nkornia>=0.7.1\n")
    setup_host.install_requirements(folder)
    assert pip_calls == [("install", "torch", "kornia>=0.7.1"), ("install", "torchaudio")]
    setup_host.install_requirements(folder)
    assert len(pip_calls) == 2


def test_pytorch_goes_back_to_the_last_one_that_torchaudio_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip_calls: list[tuple[str, ...]]
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(setup_host, "can_import", lambda _: next(answers))
    setup_host.install_requirements(make_host(tmp_path / "host", "torch\ntorchaudio\n"))
    assert pip_calls[-1] == ("install", "torch==2.11.*", "torchvision", "torchaudio==2.11.1")


def test_setup_fails_where_no_torchaudio_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip_calls: list[tuple[str, ...]]
) -> None:
    monkeypatch.setattr(setup_host, "can_import", lambda _: False)
    folder = make_host(tmp_path / "host", "torch\ntorchaudio\n")
    with pytest.raises(SetupFailed, match="torchaudio") as error:
        setup_host.install_requirements(folder)
    assert "7.8.9" in str(error.value) and str(folder) in str(error.value)


def test_a_host_without_torchaudio_gets_none(
    tmp_path: Path, pip_calls: list[tuple[str, ...]]
) -> None:
    setup_host.install_requirements(make_host(tmp_path / "host", "torch\nav>=17.0.0\n"))
    assert pip_calls == [("install", "torch", "av>=17.0.0")]


def test_a_server_for_the_browser_writes_below_its_base_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["run_host", "--port", "8200"])
    line = run_host.command(make_host(tmp_path / "host", ""), tmp_path / "base")
    assert line[-2:] == ["--port", "8200"]
    database = line[line.index("--database-url") + 1]
    assert Path(database.removeprefix("sqlite:///")).parent == tmp_path / "base" / "user"
