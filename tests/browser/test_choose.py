"""Choosing a motion by eye on LAMP Trainer, in ComfyUI's own front end."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import RUN_KEY, load_motion_file, save_motion
from lamp.motion_file.provenance import SCORES_KEY
from lamp.training.samples import save_animation
from lamp.training.state import TrainingState, write_state
from scripts.server.browser import NODES_2, change_settings, wait_until_ready
from scripts.server.server import ComfyServer
from tests.browser.conftest import has_nodes_2
from tests.browser.test_files import CHOSEN, TOASTS

# A trainer behind a checkpoint, whose button is pressed; returns the texts of what is offered.
PRESS = """async (name) => {
    let trainer = app.graph.nodes.find(node => node.type === 'LAMP_Trainer')
    if (!trainer) {
        const base = LiteGraph.createNode('LAMP_LoadToyBase')
        trainer = LiteGraph.createNode('LAMP_Trainer')
        app.graph.add(base)
        app.graph.add(trainer)
        base.connect(0, trainer, 'model')
    }
    trainer.widgets.find(widget => widget.name === 'name').value = name
    trainer.widgets.find(widget => widget.type === 'button').callback()
    for (let wait = 0; wait < 100 && !document.querySelector('.lamp-choose img'); wait++)
        await new Promise(done => setTimeout(done, 100))
    await new Promise(done => setTimeout(done, 1500)) // the pictures
    return [...document.querySelectorAll('.lamp-choose > button')].map(button => button.innerText)
}"""
SHOWN = """() => [...document.querySelectorAll('.lamp-choose img')]
    .map(picture => picture.hidden ? 0 : picture.naturalWidth)"""
IS_CHOSEN = f"wanted => JSON.stringify(({CHOSEN})()) === JSON.stringify(wanted)"
LINKED = """() => {
    const loader = app.graph.nodes.find(node => node.type === 'LAMP_LoadMotion')
    return loader.getInputNode(loader.findInputSlot('model'))?.type
}"""


def steps_of(offered: list[str]) -> list[int]:
    return [int(re.findall(r"\d+", text)[0]) for text in offered]


@pytest.fixture(scope="module")
def run(server: ComfyServer) -> str:
    """Two runs named horses/eye; the second has two kept motions, one of them with a sample, a
    training state and a comparison of all samples."""
    folder: Path = server.base / "models" / "lamp_motion" / "horses"
    folder.mkdir(parents=True)
    for name, steps in {"1": 9, "2-step000020": 20, "2-step000100": 100, "2": 150}.items():
        number, _, mark = name.partition("-")
        scores = json.dumps({"sample_motion": steps / 1000, "<b>": 1})
        extra = {SCORES_KEY: scores, RUN_KEY: f"run {number}"}
        path = folder / f"eye_{int(number):05}{'-' if mark else ''}{mark}.safetensors"
        save_motion(path, {"x": torch.zeros(1)}, MotionConfig("sd1", steps=steps), extra=extra)
    samples = server.base / "output" / "lamp_training" / "horses" / "eye_00002"
    samples.mkdir(parents=True)
    save_animation(samples / "sample-step000020.webp", torch.rand(3, 32, 48, 3), 8.0)
    facts = {"step": 60, "settings": {"optimizer": "adamw"}, "run": "run 2", "validation": []}
    state = TrainingState({"motion.x": torch.ones(1)}, facts)
    write_state(samples / "state-step000060.safetensors", state)
    Image.new("RGB", (99, 9)).save(samples / "samples.png")
    return "horses/eye"


@pytest.fixture(params=[False, True], ids=["canvas", "nodes_2"])
def opened(page: Any, run: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param and not has_nodes_2(page):
        pytest.skip("this front end has no Nodes 2.0")
    change_settings(page, {NODES_2: request.param})
    page.reload()
    wait_until_ready(page)
    page.evaluate("() => app.graph.clear()")
    yield page
    change_settings(page, {NODES_2: False})


def test_a_click_chooses_the_motion(opened: Any, run: str) -> None:
    offered = opened.evaluate(PRESS, run)
    assert steps_of(offered) == [20, 60, 100, 150]
    assert "0.0200" in offered[0] and "<b>" in offered[0]
    assert opened.evaluate(SHOWN) == [48, 0, 0, 0, 99]
    opened.locator(".lamp-choose > button").nth(2).click()
    opened.wait_for_function(IS_CHOSEN, arg=["horses/eye_00002-step000100.safetensors"])
    assert opened.evaluate(LINKED) == "LAMP_LoadToyBase"
    assert not opened.locator(".lamp-choose").count()
    opened.evaluate(PRESS, run)
    opened.locator(".lamp-choose > button").nth(0).click()
    opened.wait_for_function(IS_CHOSEN, arg=["horses/eye_00002-step000020.safetensors"])


def test_a_click_saves_the_motion_of_a_state(opened: Any, run: str, server: ComfyServer) -> None:
    assert steps_of(opened.evaluate(PRESS, run)) == [20, 60, 100, 150]
    opened.locator(".lamp-choose > button").nth(1).click()
    opened.wait_for_function(IS_CHOSEN, arg=["horses/eye_00002-step000060.safetensors"])
    path = server.base / "models/lamp_motion/horses/eye_00002-step000060.safetensors"
    try:
        assert load_motion_file(path).state["x"] == 1
        assert steps_of(opened.evaluate(PRESS, run)) == [20, 60, 100, 150]
    finally:
        path.unlink()


def test_a_motion_that_cannot_be_saved_is_told(opened: Any, run: str, server: ComfyServer) -> None:
    path = server.base / "output/lamp_training/horses/eye_00002/state-step000060.safetensors"
    whole = path.read_bytes()
    opened.evaluate(PRESS, run)
    try:
        path.write_bytes(whole[: len(whole) // 2])
        opened.locator(".lamp-choose > button").nth(1).click()
        opened.wait_for_timeout(2000)
        assert any(path.name in text for text in opened.evaluate(TOASTS))
        assert not list((server.base / "models/lamp_motion/horses").glob("*60*"))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_the_choice_can_be_left(opened: Any, run: str, way: str) -> None:
    """Also where a front end prevents what Escape does to a dialog."""
    prevent = "event => event.key === 'Escape' && event.preventDefault()"
    opened.evaluate(f"() => addEventListener('keydown', {prevent}, {{ capture: true }})")
    opened.evaluate(PRESS, run)
    if way == "Escape":
        opened.keyboard.press("Escape")
    else:
        opened.locator(".lamp-choose div button").click()
    opened.wait_for_function("() => !document.querySelector('.lamp-choose')")
    assert opened.evaluate(CHOSEN) == []


INSIDE = """async (name) => {
    const make = type => {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        return node
    }
    const [base, trainer] = ['LAMP_LoadToyBase', 'LAMP_Trainer'].map(make)
    base.connect(0, trainer, 'model')
    app.graph.convertToSubgraph(new Set([trainer]))
    const graph = app.graph.nodes.find(node => node.isSubgraphNode?.()).subgraph
    const inside = graph.nodes.find(node => node.type === 'LAMP_Trainer')
    inside.widgets.find(widget => widget.name === 'name').value = name
    inside.widgets.find(widget => widget.type === 'button').callback()
    for (let wait = 0; wait < 100 && !document.querySelector('.lamp-choose img'); wait++)
        await new Promise(done => setTimeout(done, 100))
    document.querySelectorAll('.lamp-choose > button')[2].click()
    await new Promise(done => setTimeout(done, 2000))
    const loaders = graph.nodes.filter(node => node.type === 'LAMP_LoadMotion')
    return loaders.map(loader => [
        loader.widgets.find(widget => widget.name === 'motion_name').value,
        loader.getInputLink(loader.findInputSlot('model'))?.origin_id === graph.inputNode.id,
    ])
}"""


def test_in_a_subgraph_the_new_loader_gets_the_trainers_model(opened: Any, run: str) -> None:
    found = opened.evaluate(INSIDE, run)
    assert found == [["horses/eye_00002-step000100.safetensors", True]]


def test_of_runs_with_a_date_the_last_one_is_offered(opened: Any, server: ComfyServer) -> None:
    root: Path = server.base / "models" / "lamp_motion"
    paths = []
    for day, number, age in ((14, 1, 300), (14, 2, 200), (15, 1, 100)):
        path = root / f"2026-08-{day}" / f"dated_{number:05}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_motion(path, {"x": torch.zeros(1)}, MotionConfig("sd1", steps=10 * day + number))
        os.utime(path, (time.time() - age,) * 2)
        paths.append(path)
    try:
        assert steps_of(opened.evaluate(PRESS, "%year%-%month%-%day%/dated")) == [151]
    finally:
        for path in paths:
            path.unlink()


def test_a_name_without_motions_offers_nothing(opened: Any) -> None:
    assert opened.evaluate(PRESS, "horses/ey") == []
