"""Every workflow is readable when it opens on a fresh install: default options, no model files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.server.browser import NODES_2, change_settings, open_page
from scripts.server.server import ComfyServer
from scripts.workflows import TITLES, load_canvas
from tests.browser.conftest import UNSETTLED, front_end, has_nodes_2

SIZES = ((1600, 1000), (1366, 768))
# Below a zoom of 0.57 the front end draws no text on the canvas.
READABLE = 0.6
OPEN = """async ([workflow, name]) => {
    await app.loadGraphData(workflow, true, true, name)
    await new Promise(done => setTimeout(done, 1500))
}"""
# Boxes [left, top, right, bottom] on the canvas: of nodes as they are drawn, and of groups.
DRAWN = """() => {
    const {ds, canvas, low_quality} = app.canvas
    const corner = canvas.getBoundingClientRect()
    const onCanvas = box => [
        (box.left - corner.left) / ds.scale - ds.offset[0],
        (box.top - corner.top) / ds.scale - ds.offset[1],
        (box.right - corner.left) / ds.scale - ds.offset[0],
        (box.bottom - corner.top) / ds.scale - ds.offset[1],
    ]
    const around = ([left, top, width, height]) => [left, top, left + width, top + height]
    const pen = document.createElement('canvas').getContext('2d')
    pen.font = `${LiteGraph.GROUP_TEXT_SIZE ?? 20}px ${LiteGraph.GROUP_FONT ?? 'Inter'}`
    // The front end draws the title this far inside its group.
    const end = group => group.pos[0] + 10 + pen.measureText(group.title).width
    const parts = [...document.querySelectorAll('[data-node-id]')]
    return {
        zoom: ds.scale,
        text: !low_quality,
        nodes: parts.length
            ? parts.map(part => [part.dataset.nodeId, onCanvas(part.getBoundingClientRect())])
            : app.graph.nodes.map(node => [String(node.id), around(node.boundingRect)]),
        long: app.graph.groups
            .filter(group => end(group) > group.pos[0] + group.size[0])
            .map(group => group.title),
        groups: app.graph.groups.map(group => around([...group.pos, ...group.size])),
    }
}"""


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def window(request: pytest.FixtureRequest, fresh_server: ComfyServer) -> Iterator[Any]:
    with open_page(fresh_server.url, *request.param) as page:
        yield page


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes_2"])
@pytest.mark.timeout(600)
def test_a_workflow_is_readable_when_it_opens(window: Any, shots: Path, nodes_2: bool) -> None:
    if nodes_2 and not has_nodes_2(window):
        pytest.skip("this front end has no Nodes 2.0")
    if nodes_2 and front_end(window) in UNSETTLED:
        pytest.skip("this front end's own Nodes 2.0 does not keep the layout")
    change_settings(window, {NODES_2: nodes_2})
    faults = {}
    for name, title in TITLES.items():
        workflow = load_canvas(name)
        window.evaluate(OPEN, [workflow, title])
        mode = "nodes_2" if nodes_2 else "canvas"
        window.screenshot(path=str(shots / f"{name}_{mode}_{window.viewport_size['width']}.png"))
        drawn = window.evaluate(DRAWN)
        assert len(drawn["nodes"]) == len(workflow["nodes"])
        faults[title] = faults_of(drawn)
        window.keyboard.press("Escape")  # the dialog about missing models
    assert not any(faults.values()), faults


def faults_of(drawn: dict[str, Any]) -> list[str]:
    found = []
    if drawn["zoom"] < READABLE or not drawn["text"]:
        found.append(f"zoom {drawn['zoom']:.3f}")
    found += [f"the title {title!r} is wider than its group" for title in drawn["long"]]
    for (one, box), (other, second) in itertools.combinations(drawn["nodes"], 2):
        if overlap(box, second):
            found.append(f"nodes {one} and {other} overlap")
    for node, box in drawn["nodes"]:
        if sum(inside(box, group) for group in drawn["groups"]) != 1:
            found.append(f"node {node} is not inside one group")
    if any(overlap(*pair) for pair in itertools.combinations(drawn["groups"], 2)):
        found.append("groups overlap")
    return found


def overlap(one: list[float], other: list[float]) -> bool:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return min(wide, high) > 0.5


def inside(box: list[float], group: list[float]) -> bool:
    return all(box[i] >= group[i] - 0.5 and box[i + 2] <= group[i + 2] + 0.5 for i in (0, 1))
