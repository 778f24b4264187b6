"""Fixtures for tests of ComfyUI's own front end in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scripts.server.browser import NODES_2, BrowserMissing, browser_path, open_page
from scripts.server.host import ROOT, HostMissing, host_path
from scripts.server.server import ComfyServer
from scripts.workflows import ORIGINALS, load_api

_HERE = Path(__file__).parent
# Where each node's menu finds what the user has to bring.
_FOLDERS = {
    ("CheckpointLoaderSimple", "ckpt_name"): "models/checkpoints",
    ("LAMP_LoadMotion", "motion_name"): "models/lamp_motion",
    ("ControlNetLoader", "control_net_name"): "models/controlnet",
    ("LoraLoaderModelOnly", "lora_name"): "models/loras",
    ("CLIPLoader", "clip_name"): "models/text_encoders",
    ("CLIPVisionLoader", "clip_name"): "models/clip_vision",
    ("LoadImage", "image"): "input",
    ("LoadVideo", "file"): "input",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.host)
            item.add_marker(pytest.mark.slow)


def skip_without_browser() -> None:
    try:
        host_path(), browser_path()
    except (HostMissing, BrowserMissing) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    """ComfyUI with the pack alone, and every file that the workflows name, most of them empty."""
    skip_without_browser()
    with ComfyServer() as running:
        for name in ORIGINALS:
            for node in load_api(name).values():
                _lay_out(running.base, node["class_type"], node["inputs"])
        yield running


def _lay_out(base: Path, kind: str, inputs: dict[str, Any]) -> None:
    for (of, name), folder in _FOLDERS.items():
        if of == kind:
            path = base / folder / inputs[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if kind == "LoadImage":
                Image.new("RGB", (64, 40), "teal").save(path)
            if kind == "LAMP_LoadMotion":  # the page asks the server for its header
                save_file({"x": torch.zeros(1)}, path, {"lamp.format": "1"})
    folder = inputs.get("folder", "(")
    if kind == "LAMP_TrainingClips" and not folder.startswith("("):
        (base / folder).mkdir(parents=True, exist_ok=True)
        (base / folder / "clip_1.mp4").touch()


class Talk:
    """What the page said: errors of scripts, and error messages on its console."""

    def __init__(self, page: Any) -> None:
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(f"script: {error}"))
        page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        words = f"{message.text} ({message.location.get('url', '')})"
        # Of every pack on the canvas the front end asks the registry, which is not reached here.
        if message.type == "error" and "lamp" in words.lower() and "api.comfy.org" not in words:
            self.errors.append(f"console: {words}")


@pytest.fixture(scope="session")
def fresh_server() -> Iterator[ComfyServer]:
    """ComfyUI as just installed: no model, picture or clip that a workflow names."""
    skip_without_browser()
    with ComfyServer() as running:
        yield running


# Front ends in which Nodes 2.0 was new: groups and nodes part when a workflow is opened; 1.42 draws
# nodes, ComfyUI's own too, up to 50 pixels higher than the workflows leave room for.
UNSETTLED = {"1.27", "1.32", "1.42"}


def front_end(page: Any) -> str:
    """Its version without the last number."""
    version = page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__")
    return ".".join(version.split(".")[:2])


def has_nodes_2(page: Any) -> bool:
    return page.evaluate(f"() => app.extensionManager.setting.get('{NODES_2}')") is not None


@pytest.fixture(scope="module")
def page(server: ComfyServer) -> Iterator[Any]:
    """Closed with its module: playwright keeps a loop running, beside which no other can start."""
    with open_page(server.url) as opened:
        opened.talk = Talk(opened)
        yield opened


@pytest.fixture(scope="session")
def shots() -> Path:
    """Where pictures of the page go, to be looked at."""
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
