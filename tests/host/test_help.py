"""The server serves the help pages and the translations to the front end."""

from __future__ import annotations

import json

import pytest
import requests

from scripts.assets.locales import FOLDER, HELP, MAIN, NODES, help_pages
from scripts.server.host import PACK_FOLDER
from scripts.server.server import ComfyServer


@pytest.fixture(scope="module")
def our_ids(server: ComfyServer) -> list[str]:
    module = f"custom_nodes.{PACK_FOLDER}"
    infos = server.object_info()
    ids = [name for name, info in infos.items() if info["python_module"] == module]
    assert ids, "the server knows none of the pack's nodes"
    return ids


def fetch(server: ComfyServer, path: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"{server.url}/extensions/{PACK_FOLDER}/docs/{path}", timeout=30)


def test_help_pages_are_served(server: ComfyServer, our_ids: list[str]) -> None:
    for node in our_ids:
        for page in help_pages(node).values():
            answer = fetch(server, page)
            assert answer.status_code == 200, page
            assert answer.content == (HELP / page).read_bytes(), page


def test_other_languages_fall_back_to_english(server: ComfyServer, our_ids: list[str]) -> None:
    """The front end requests the page of the language first, then ID.md."""
    assert fetch(server, f"{our_ids[0]}/fr.md").status_code == 404
    assert fetch(server, f"{our_ids[0]}.md").status_code == 200


@pytest.mark.parametrize("language", ["en", "zh"])
def test_translations_are_served(server: ComfyServer, our_ids: list[str], language: str) -> None:
    served = server.get("/i18n")[language]
    nodes = json.loads((FOLDER / language / NODES).read_text(encoding="utf-8"))
    categories = json.loads((FOLDER / language / MAIN).read_text(encoding="utf-8"))
    assert set(nodes) == set(our_ids)
    assert {name: served["nodeDefs"][name] for name in our_ids} == nodes
    assert categories["nodeCategories"].items() <= served["nodeCategories"].items()
