"""What runs in the repository's own automation is known to the byte."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from scripts.server.host import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
LOCKS = sorted((ROOT / ".github").glob("*.txt"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_stand_at_a_commit(path: object) -> None:
    text = path.read_text("utf-8")  # type: ignore[attr-defined]
    used = re.findall(r"^\s*-?\s*uses:\s*(\S+)", text, re.MULTILINE)
    assert all(re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", each) for each in used), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_nothing_is_fetched_from_a_branch_or_without_its_hash(path: object) -> None:
    text = path.read_text("utf-8")  # type: ignore[attr-defined]
    assert not re.search(r"curl|wget|raw\.githubusercontent|pipx|npx|git clone|\| *(ba)?sh\b", text)
    installs = re.findall(r"pip\"?\s+install\s+(.*)", text)
    assert all("--require-hashes" in each for each in installs)
    assert not re.search(r"ubuntu-latest|permissions:\s*write", text)


def test_the_token_is_given_to_one_step_alone() -> None:
    found = {path.name: path.read_text("utf-8").count("secrets.") for path in WORKFLOWS}
    assert {name: count for name, count in found.items() if count} == {"publish.yml": 1}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_name_one_version_and_its_hash(path: object) -> None:
    lines = [line for line in path.read_text("utf-8").splitlines() if line[:1] not in ("#", "")]  # type: ignore[attr-defined]
    assert len(lines) > 10
    for line in lines:
        required, *hashes = line.split(" --hash=")
        assert re.fullmatch(r"==[^*]+", str(Requirement(required).specifier))
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)
