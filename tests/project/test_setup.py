"""What `make setup` lays out, and how the tests get at ComfyUI and at the pack."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from scripts import setup_host
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
    with pytest.raises(host.HostMissing, match="point COMFYUI_PATH at a ComfyUI folder"):
        host.host_path()


def test_the_hosts_requirements_are_taken_but_for_torchaudio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "torch\ntorchaudio\ntorchaudio>=2 # sound\n\n#optional:\nkornia>=0.7.1\n"
    (tmp_path / "requirements.txt").write_text(lines)
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert setup_host.host_requirements() == ["torch", "kornia>=0.7.1"]


def test_a_step_runs_again_only_for_new_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_host, "DONE", tmp_path / "done.json")
    runs: list[str] = []

    def fail() -> None:
        raise setup_host.SetupFailed("no network")

    with pytest.raises(setup_host.SetupFailed):
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
