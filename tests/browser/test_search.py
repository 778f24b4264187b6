"""The search box of ComfyUI's own front end finds what a new user needs before the toy nodes."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.server.server import ComfyServer
from scripts.workflows import load_canvas
from tests.browser.test_front_end import TOY, UNKNOWN, load

FOUND = """() => [...document.querySelectorAll('[role=option]')]
    .map(option => option.innerText.split('\\n')[0].trim())"""
TOY_NODES = {
    *("Load LAMP Toy Base", "Load LAMP Toy CLIP"),
    *("LAMP Toy Clips", "LAMP Toy Object", "LAMP Toy Score"),
}


def search(page: Any, query: str) -> list[str]:
    """The display names that the search box lists, best first."""
    page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.wait_for_timeout(700)
    page.keyboard.type(query)
    page.wait_for_timeout(1500)
    found = page.evaluate(FOUND)
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    return found


@pytest.fixture
def hides_toys(server: ComfyServer) -> None:
    if "dev_only" not in server.object_info("LAMP_ToyClips")["LAMP_ToyClips"]:
        pytest.skip("this ComfyUI cannot hide nodes from search")


@pytest.mark.parametrize("query", ["lamp", "animate", "image to video"])
@pytest.mark.usefixtures("hides_toys")
def test_the_loader_and_the_sampler_are_found_and_no_toy(page: Any, query: str) -> None:
    load(page, "lamp_animate_image")
    found = search(page, query)
    assert {"Load LAMP Motion", "LAMP KSampler"} <= set(found)
    assert not TOY_NODES & set(found)


@pytest.mark.usefixtures("hides_toys")
def test_a_hidden_toy_node_is_in_its_workflow_and_found_in_developer_mode(page: Any) -> None:
    load(page, TOY)
    assert page.evaluate(UNKNOWN) == []
    kinds = page.evaluate("() => app.graph.nodes.map(node => node.type)")
    assert sorted(kinds) == sorted(node["type"] for node in load_canvas(TOY)["nodes"])
    assert not TOY_NODES & set(search(page, "lamp toy"))
    page.evaluate("() => app.extensionManager.setting.set('Comfy.DevMode', true)")
    try:
        assert set(search(page, "lamp toy")) >= TOY_NODES
    finally:
        page.evaluate("() => app.extensionManager.setting.set('Comfy.DevMode', false)")
