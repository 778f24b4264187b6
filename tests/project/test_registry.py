"""Metadata, archive and requirements, as ComfyUI's registry and manager read them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

from scripts.server.host import ROOT, HostMissing, host_path
from scripts.setup_host import read_toml

PROJECT = read_toml(ROOT / "pyproject.toml")
COMFY = PROJECT["tool"]["comfy"]
RAW = "https://raw.githubusercontent.com/lamp-comfy/lamp-motion/main/"


def test_the_registry_accepts_the_name() -> None:
    """https://docs.comfy.org/registry/specifications"""
    name = PROJECT["project"]["name"]
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", name) and len(name) < 100
    assert "comfyui" not in name.lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["project"]["version"])
    assert (ROOT / PROJECT["project"]["license"]["file"]).is_file()


def test_the_metadata_shown_in_the_registry_is_complete() -> None:
    assert COMFY["PublisherId"] and COMFY["DisplayName"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", COMFY["requires-comfyui"])
    assert {"Repository", "Documentation", "Bug Tracker"} <= set(PROJECT["project"]["urls"])
    systems = [c for c in PROJECT["project"]["classifiers"] if c.startswith("Operating System")]
    assert systems and PROJECT["project"]["requires-python"] == ">=3.10"
    # WEB_DIRECTORY names the folder `web`; named here as well it would be served twice.
    assert "web" not in COMFY


@pytest.mark.parametrize(("field", "shape"), [("Icon", (1, 1)), ("Banner", (21, 9))])
def test_icon_and_banner_exist(field: str, shape: tuple[int, int]) -> None:
    assert COMFY[field].startswith(RAW)
    file = ROOT / COMFY[field].removeprefix(RAW)
    with Image.open(file) as picture:
        assert picture.width * shape[1] == picture.height * shape[0]
        assert field != "Icon" or picture.width <= 400
    assert file.stat().st_size < 100_000


def ignored(path: str) -> bool:
    """In .comfyignore, folders end in a slash, everything else names a file."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            if path.startswith(line) if line.endswith("/") else fnmatch(path, line):
                return True
    return False


def test_the_archive_has_what_users_need_and_no_development_files() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("needs a git checkout")
    paths = [path for path in listed.stdout.split("\0") if path]
    tops = {path.split("/")[0] for path in paths if not ignored(path)}
    needed = {"__init__.py", "nodes", "lamp", "web", "locales", "workflows", "subgraphs"}
    named = {"pyproject.toml", "requirements.txt", "LICENSE", "README.md"}
    assert needed | named <= tops
    assert not tops & {"tests", "benchmarks", "scripts", ".github", ".ci", "Makefile"}


# --- requirements -----------------------------------------------------------------------------


def own_requirements() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    bare = (line.split("#")[0].strip() for line in lines)
    return [Requirement(line) for line in bare if line]


def extra_requirements() -> list[Requirement]:
    """Of the extra `diffusers`; `dev` is for the development environment."""
    return [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["diffusers"]]


def test_nothing_is_pinned() -> None:
    every = [*own_requirements(), *extra_requirements()]
    kinds = {spec.operator for requirement in every for spec in requirement.specifier}
    assert kinds <= {">="}
    assert PROJECT["project"]["dynamic"] == ["dependencies"]


def host_names() -> set[str]:
    try:
        text = (host_path() / "requirements.txt").read_text(encoding="utf-8")
    except HostMissing as error:
        pytest.skip(str(error))
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {canonical(Requirement(line).name) for line in lines if line}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: list[Requirement]) -> Iterator[tuple[str, Requirement]]:
    """(who requires, what) of all direct and indirect requirements, as installed here."""
    waiting, seen = [("this pack", requirement) for requirement in requirements], set()
    while waiting:
        who, requirement = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        yield who, requirement
        name = canonical(requirement.name)
        if name not in seen:
            seen.add(name)
            waiting += [(name, Requirement(line)) for line in metadata.requires(name) or []]


@pytest.mark.parametrize("which", ["own", "diffusers"])
def test_no_package_of_the_host_would_be_downgraded(which: str) -> None:
    """All requirements accept the host's newest packages, which are installed here."""
    host = host_names()
    wanted: Any = own_requirements() if which == "own" else extra_requirements()
    moved = [
        f"{who} wants {requirement}, the host has {metadata.version(requirement.name)}"
        for who, requirement in closure(wanted)
        if canonical(requirement.name) in host
        and not requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    ]
    assert moved == []
