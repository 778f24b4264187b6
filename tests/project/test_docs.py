"""What the guides say of the code is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from scripts.server.host import ROOT

PLACE = re.compile(r"`(lamp/[\w/]+\.py)` `(\w+)`")
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("place", sorted(set(PLACE.findall(METHOD))), ids=" ".join)
def test_the_method_page_names_places_that_exist(place: tuple[str, str]) -> None:
    file, name = place
    source = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE)


def test_every_row_of_the_method_page_has_three_cells_and_a_place() -> None:
    rows = [line for line in METHOD.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| Paper |")]
    assert {row.count("|") for row in rows} == {4}
    without = [row for row in rows if not PLACE.search(row)]
    assert len(without) == 1 and "the workflow **" in without[0]


def test_the_map_of_the_house_names_every_folder() -> None:
    """Folders that git knows, as `git ls-files` of a clone shows them at the top."""
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    drawing = text.split("```")[1]
    tracked = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"]
    assert [name for name in tracked if name != "build" and f"{name}/" not in drawing] == []


# --- messages that the texts quote ----------------------------------------------------------------

TEXTS = [
    *sorted((ROOT / "web" / "docs").rglob("*.md")),
    *(
        ROOT / f"{name}{ending}"
        for name in ("README", "docs/train_a_motion")
        for ending in (".md", ".zh.md")
    ),
]


@pytest.fixture(scope="module")
def messages() -> str:
    """Every text of the code, what is filled in standing as a line break."""
    files = [path for part in ("lamp", "nodes") for path in (ROOT / part).rglob("*.py")]
    trees = (ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for path in files)
    return "\n\n".join(text for tree in trees for node in tree if (text := spoken(node)))


def spoken(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(spoken(part) or "\n" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def quotes(page: Path) -> list[str]:
    """What stands in quotes, in the README in italics, in the first cell of a table's row."""
    rows = [
        line.split("|")[1] for line in page.read_text(encoding="utf-8").splitlines() if "|" in line
    ]
    pattern = r"\*([^*]+ [^*]+ [^*]+)\*" if page.name.startswith("README") else r'"([^"]+)"'
    return [quote for row in rows for quote in re.findall(pattern, row)]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_quoted_messages_are_those_of_the_code(page: Path, messages: str) -> None:
    """Of each quote, whose values are examples, some words in a row stand in a message."""
    lost = []
    for quote in quotes(page):
        words = quote.replace("…", " ").split()
        runs = (
            " ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)
        )
        longest = max((run for run in runs if run in messages), key=len, default="")
        if len(longest) < min(10, len(quote)):
            lost.append(quote)
    assert lost == []
