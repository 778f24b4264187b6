"""What Load LAMP Motion shows of a file before anything runs, in ComfyUI's own front end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import save_motion
from scripts.server.browser import wait_until_ready
from scripts.server.server import ComfyServer
from tests.browser.test_files import TOASTS
from tests.browser.test_front_end import load

PICTURE = "data:image/png;base64,iVBORw0KGgo="
ABOUT = """async (name) => {
    const node = LiteGraph.createNode('LAMP_LoadMotion')
    app.graph.add(node)
    const widget = node.widgets.find((widget) => widget.name === 'motion_name')
    widget.value = name
    widget.callback(name)
    await new Promise(done => setTimeout(done, 1500))
    const about = node.widgets.find((widget) => widget.name === 'about')
    const found = {
        tooltip: widget.tooltip,
        text: about?.value,
        picture: about?.lampPicture.src,
        html: about?.element.innerHTML,
        saved: node.serialize().widgets_values.length,
        inputs: Object.keys((await app.graphToPrompt()).output[node.id].inputs)
    }
    app.graph.remove(node)
    return found
}"""


ABOUT_TWO = """async (names) => {
    const node = LiteGraph.createNode('LAMP_LoadMotion')
    const widget = node.widgets.find((widget) => widget.name === 'motion_name')
    const found = []
    for (const name of names) {
        widget.value = name
        widget.callback(name)
        await new Promise(done => setTimeout(done, 1500))
        found.push(widget.tooltip)
    }
    return found
}"""


def add(page: Any, server: ComfyServer, name: str, config: MotionConfig, **more: Any) -> None:
    folder: Path = server.base / "models" / "lamp_motion"
    save_motion(folder / name, {"x": torch.zeros(1)}, config, **more)
    page.reload()
    wait_until_ready(page)


@pytest.mark.parametrize("by", ["prompt", "captions"])
def test_words_size_and_picture_are_shown(page: Any, server: ComfyServer, by: str) -> None:
    words = {"prompt": "horse runs"}
    if by == "captions":
        words = {"captions": ["A horse runs on a beach", "a white horse runs"]}  # type: ignore[dict-item]
    config = MotionConfig("sd1", 16, 512, 320, fps=10.0, **words)  # type: ignore[arg-type]
    name = f"{by}.safetensors"
    add(page, server, name, config, thumbnail=PICTURE, license_name="CC-BY-4.0")
    found = page.evaluate(ABOUT, name)
    for part in ("horse runs", "16", "512 x 320", "10 fps", "CC-BY-4.0"):
        assert part in found["text"] and part in found["tooltip"]
    assert found["picture"] == PICTURE
    assert "about" not in found["inputs"]


def test_text_of_a_file_is_never_html(page: Any, server: ComfyServer) -> None:
    config = MotionConfig("sd1", prompt="<img src=x onerror=alert(1)>")
    add(page, server, "html.safetensors", config, thumbnail="javascript:alert(1)")
    found = page.evaluate(ABOUT, "html.safetensors")
    assert "<img src=x" in found["text"] and "<img src=x" not in found["html"]
    assert "javascript" not in found["picture"]


def test_a_file_that_tells_nothing_is_not_described_as_the_one_before(
    page: Any, server: ComfyServer
) -> None:
    """The host sends no header above 1 MB, such as one with a large workflow."""
    add(page, server, "large.safetensors", MotionConfig("sd1"), extra={"workflow": "x" * 1_200_000})
    add(page, server, "small.safetensors", MotionConfig("sd1", prompt="horse runs"))
    first, then = page.evaluate(ABOUT_TWO, ["small.safetensors", "large.safetensors"])
    assert "horse runs" in first and "horse runs" not in (then or "")


def test_a_file_that_is_not_there_shows_nothing(page: Any) -> None:
    found = page.evaluate(ABOUT, "gone.safetensors")
    assert not found.get("text")


def test_missing_words_are_shown_as_a_message(page: Any) -> None:
    load(page, "lamp_animate_image_toy")
    page.evaluate(
        """async () => {
            const node = app.graph.nodes.find(node => /^Prompt/.test(node.title))
            const input = node.inputs.findIndex(input => input.name === 'text')
            node.disconnectInput(input)
            node.widgets.find(widget => widget.name === 'text').value = 'a red bird'
            await app.queuePrompt(0, 1)
            await new Promise(done => setTimeout(done, 2000))
            await app.api.interrupt()
        }"""
    )
    shown = page.evaluate(TOASTS)
    assert any("toy_horse" in text and "runs" in text for text in shown)
