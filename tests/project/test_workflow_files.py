"""Automation: pinned actions and tools, and checks before publishing."""

from __future__ import annotations

import re

import pytest
import yaml
from packaging.requirements import Requirement

from scripts.server.host import ROOT
from scripts.setup_host import read_toml

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
LOCKS = sorted((ROOT / ".github").glob("*.txt"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit(path: object) -> None:
    text = path.read_text("utf-8")  # type: ignore[attr-defined]
    used = re.findall(r"^\s*-?\s*uses:\s*(\S+)", text, re.MULTILINE)
    elsewhere = [each for each in used if not each.startswith("./.github/")]
    assert all(re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", each) for each in elsewhere), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_is_fetched_without_a_hash(path: object) -> None:
    text = path.read_text("utf-8")  # type: ignore[attr-defined]
    assert not re.search(r"curl|wget|raw\.githubusercontent|pipx|npx|git clone|\| *(ba)?sh\b", text)
    installs = re.findall(r"pip\"?\s+install\s+(.*)", text)
    assert all("--require-hashes" in each for each in installs)
    assert not re.search(r"ubuntu-latest|permissions:\s*write", text)


def test_only_one_step_gets_the_token() -> None:
    found = {path.name: path.read_text("utf-8").count("secrets.") for path in WORKFLOWS}
    assert {name: count for name, count in found.items() if count} == {"publish.yml": 1}


def test_publishing_needs_the_checks() -> None:
    jobs = {path.stem: yaml.safe_load(path.read_text("utf-8"))["jobs"] for path in WORKFLOWS}
    gate = jobs["publish"]["check"]["uses"]
    assert jobs["publish"]["publish"]["needs"] == "check"
    assert gate == "./.github/workflows/check.yml"
    runs = [step.get("run", "") for step in jobs["check"]["check"]["steps"]]
    assert "make ${{ matrix.target }}" in runs
    assert jobs["check"]["check"]["strategy"]["matrix"]["target"] == ["check", "test"]


def test_the_bug_form_asks_for_the_setup() -> None:
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    bug = yaml.safe_load((folder / "bug.yml").read_text("utf-8"))
    required = {
        field["id"] for field in bug["body"] if field.get("validations", {}).get("required")
    }
    assert {"comfyui", "device", "flags", "log"} <= required
    assert all(yaml.safe_load(path.read_text("utf-8")) for path in folder.glob("*.yml"))
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text("utf-8"))["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "pip"}


def test_lint_tools_are_pinned_in_one_place() -> None:
    """In pyproject.toml; the pre-commit hooks run them from .venv."""
    dev = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]["dev"]
    for tool in ("import-linter", "mypy", "ruff"):
        assert any(re.fullmatch(rf"{tool}==[\d.]+", each) for each in dev), tool
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_pin_versions_with_hashes(path: object) -> None:
    lines = [line for line in path.read_text("utf-8").splitlines() if line[:1] not in ("#", "")]  # type: ignore[attr-defined]
    assert len(lines) > 10
    for line in lines:
        required, *hashes = line.split(" --hash=")
        assert re.fullmatch(r"==[^*]+", str(Requirement(required).specifier))
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)
