"""The tests named in SECURITY.md exist."""

from __future__ import annotations

import re

import pytest

from scripts.server.host import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "| Tests |" not in line]
PROMISES = [row for row in ROWS if row.count("|") == 4]
TESTS = re.findall(r"`((?:host/)?test_\w+\.py)(?:::(\w+))?`", TEXT)


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_guarantee_names_a_test(row: str) -> None:
    assert re.search(r"`((host/)?test_\w+\.py|make check)", row.split("|")[3])


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_named_tests_exist(file: str, name: str) -> None:
    folders = ("tests",) if "/" in file else ("tests", "tests/*")
    (path,) = (path for folder in folders for path in ROOT.glob(f"{folder}/{file}"))
    code = path.read_text(encoding="utf-8")
    assert not name or f"def {name}(" in code


def test_the_table_of_parts_matches_the_program() -> None:
    from benchmarks.robustness.__main__ import PARTS

    told = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert set(told) == set(PARTS) and len(PROMISES) > 12
