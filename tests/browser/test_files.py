"""Files that a workflow needs, in ComfyUI's own front end: dropped motions and clip folders."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from scripts.server.browser import NODES_2, change_settings, wait_until_ready
from scripts.server.server import ComfyServer
from scripts.workflows import load_canvas
from tests.browser.conftest import UNSETTLED, front_end, has_nodes_2
from tests.browser.test_front_end import load

# A file dropped at the same place as the front end's own listeners would get it.
DROP = """async ([selector, name, content]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0))
    const data = new DataTransfer()
    data.items.add(new File([bytes], name))
    const target = document.querySelector(selector)
    const box = target.getBoundingClientRect()
    for (const kind of ['dragover', 'drop'])
        target.dispatchEvent(new DragEvent(kind, {
            bubbles: true,
            cancelable: true,
            clientX: box.left + box.width / 2,
            clientY: box.top + box.height - 150,
            dataTransfer: data
        }))
    await new Promise(done => setTimeout(done, 1500))
}"""
CANVAS = "#graph-canvas"
OPEN = """async ([name, content]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0))
    await app.handleFile(new File([bytes], name))
    await new Promise(done => setTimeout(done, 1000))
}"""
CHOSEN = """() => app.graph.nodes.filter(node => node.type === 'LAMP_LoadMotion')
    .map(node => node.widgets.find(widget => widget.name === 'motion_name').value)"""
KINDS = "() => app.graph.nodes.map(node => node.type).sort()"
# The second selector is for front end 1.58.
TOASTS = """() => [...document.querySelectorAll(
    '.p-toast-detail, [data-reka-toast-announce-exclude]'
)].map(found => found.innerText)"""
MADE_BY = "lamp_animate_image"


def file_with_canvas(**metadata: str) -> str:
    """A safetensors file in base64, with the workflow that wrote it, as nodes save it."""
    canvas = json.dumps(load_canvas(MADE_BY))
    return base64.b64encode(save({"x": torch.zeros(1)}, {"workflow": canvas, **metadata})).decode()


MOTION = file_with_canvas(**{"lamp.format": "1", "lamp.config": '{"prompt": "rain falls"}'})
OTHER = file_with_canvas(**{"lamp.format": "1", "lamp.config": '{"prompt": "rain stops"}'})


def kinds(name: str) -> list[str]:
    return sorted(node["type"] for node in load_canvas(name)["nodes"])


@pytest.fixture
def rain(page: Any, server: ComfyServer) -> str:
    """A motion in a sub-folder, which the page knows: its value in the menu."""
    place = server.base / "models" / "lamp_motion"
    for folder, content in (("less", OTHER), ("more", MOTION)):  # the one before it has its name
        (place / folder).mkdir(exist_ok=True)
        (place / folder / "rain.safetensors").write_bytes(base64.b64decode(content))
    page.reload()
    wait_until_ready(page)
    return str(Path("more") / "rain.safetensors")


def test_a_motion_dropped_on_the_canvas_is_chosen_in_the_only_loader(page: Any, rain: str) -> None:
    load(page, MADE_BY)
    page.evaluate(DROP, [CANVAS, "rain.safetensors", MOTION])
    assert page.evaluate(CHOSEN) == [rain]
    assert page.evaluate(KINDS) == kinds(MADE_BY)
    assert any("rain.safetensors" in text for text in page.evaluate(TOASTS))


def test_a_motion_dropped_on_a_canvas_without_loader_brings_one(page: Any, rain: str) -> None:
    load(page, "lamp_train_motion")
    page.evaluate(DROP, [CANVAS, "rain.safetensors", MOTION])
    assert page.evaluate(CHOSEN) == [rain]
    assert page.evaluate(KINDS) == sorted([*kinds("lamp_train_motion"), "LAMP_LoadMotion"])


def test_another_motion_of_the_same_name_is_not_taken(page: Any, rain: str) -> None:
    third = file_with_canvas(**{"lamp.format": "1", "lamp.config": '{"prompt": "a lamp swings"}'})
    for name in ("lamp_train_motion", MADE_BY):
        load(page, name)
        before = page.evaluate(CHOSEN)
        page.evaluate(DROP, [CANVAS, "rain.safetensors", third])
        assert (page.evaluate(CHOSEN), page.evaluate(KINDS)) == (before, kinds(name))
        assert any("rain.safetensors" in text for text in page.evaluate(TOASTS))


def test_a_motion_that_the_server_lacks_changes_nothing(page: Any) -> None:
    for name in ("lamp_train_motion", MADE_BY):
        load(page, name)
        before = page.evaluate(CHOSEN)
        page.evaluate(DROP, [CANVAS, "snow.safetensors", MOTION])
        assert (page.evaluate(CHOSEN), page.evaluate(KINDS)) == (before, kinds(name))
        assert any("snow.safetensors" in text for text in page.evaluate(TOASTS))


def test_other_files_dropped_on_the_canvas_open_as_ever(page: Any) -> None:
    load(page, "lamp_train_motion")
    page.evaluate(DROP, [CANVAS, "lora.safetensors", file_with_canvas()])
    assert page.evaluate(KINDS) == kinds(MADE_BY)


def test_a_motion_opened_from_the_menu_brings_its_canvas(page: Any) -> None:
    """As Ctrl+O does."""
    load(page, "lamp_train_motion")
    page.evaluate(OPEN, ["horse_run_00001.safetensors", MOTION])
    assert page.evaluate(KINDS) == kinds(MADE_BY)


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes_2"])
def test_a_motion_dropped_on_its_loader_is_chosen(page: Any, rain: str, nodes_2: bool) -> None:
    if nodes_2 and not has_nodes_2(page):
        pytest.skip("this front end has no Nodes 2.0")
    change_settings(page, {NODES_2: nodes_2})
    try:
        load(page, MADE_BY)
        if nodes_2:
            loader, sampler = page.evaluate(IDS)
            page.evaluate(DROP, [f'[data-node-id="{loader}"]', "rain.safetensors", MOTION])
            assert page.evaluate(CHOSEN) == [rain]
            if front_end(page) not in UNSETTLED:  # 1.32 hides drops on nodes from packs
                load(page, MADE_BY)
                page.evaluate(DROP, [f'[data-node-id="{sampler}"]', "rain.safetensors", MOTION])
                assert page.evaluate(CHOSEN) == [rain]
            return
        assert page.evaluate(DROP_ON_NODE, ["rain.safetensors", MOTION]) is True
        page.wait_for_timeout(500)
        assert page.evaluate(CHOSEN) == [rain]
        # One that the server does not have is named, and changes nothing.
        assert page.evaluate(DROP_ON_NODE, ["snow.safetensors", MOTION]) is True
        assert page.evaluate(CHOSEN) == [rain]
        page.wait_for_timeout(500)
        assert any("snow.safetensors" in text for text in page.evaluate(TOASTS))
        assert page.evaluate(DROP_ON_NODE, ["picture.png", MOTION]) is False
    finally:
        change_settings(page, {NODES_2: False})


IDS = """() => ['LAMP_LoadMotion', 'LAMP_KSampler']
    .map(type => app.graph.nodes.find(node => node.type === type).id)"""
DROP_ON_NODE = """async ([name, content]) => {
    const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0))
    const node = app.graph.nodes.find(node => node.type === 'LAMP_LoadMotion')
    const data = new DataTransfer()
    data.items.add(new File([bytes], name))
    const event = new DragEvent('drop', {dataTransfer: data})
    return Boolean(node.onDragOver(event) && await node.onDragDrop(event))
}"""


def test_a_missing_clip_folder_is_named_on_opening(page: Any, server: ComfyServer) -> None:
    folder = server.base / "input" / "horse_run"
    aside = folder.rename(folder.with_name("elsewhere"))
    try:
        page.reload()
        wait_until_ready(page)
        load(page, "lamp_train_motion")
        assert any("input/horse_run" in text for text in page.evaluate(TOASTS))
        page.evaluate("() => app.extensionManager.toast.removeAll()")
        # As after an undo.
        page.evaluate("() => app.loadGraphData(app.graph.serialize())")
        page.wait_for_timeout(1000)
        assert not any("input/horse_run" in text for text in page.evaluate(TOASTS))
    finally:
        aside.rename(folder)
