"""What the guides say of the code is there."""

from __future__ import annotations

import re

import pytest

from scripts.host import ROOT

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
    assert len(without) == 1 and "lamp_edit_video_sdxl" in without[0]


def test_the_map_of_the_house_names_every_folder() -> None:
    """Folders that git knows, as `git ls-files` of a clone shows them at the top."""
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    drawing = text.split("```")[1]
    tracked = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"]
    assert [name for name in tracked if name != "build" and f"{name}/" not in drawing] == []
