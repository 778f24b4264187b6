"""Fixtures for tests against a real ComfyUI server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.robustness.prompts import TRACE
from scripts.server.host import HostMissing, host_path
from scripts.server.server import ComfyServer
from tests.host.generate_graphs import node

_HERE = Path(__file__).parent
# custom node folders: only ComfyUI can import them
collect_ignore = ["probe_nodes", "tiny_nodes"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    """One ComfyUI with the pack for all tests, in a base directory of its own."""
    try:
        host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI: {error}")
    extra = [*(_HERE / folder for folder in collect_ignore), TRACE]
    with ComfyServer(extra_nodes=extra) as running:
        yield running


@pytest.fixture(scope="session")
def motion(server: ComfyServer) -> str:
    """A motion file for the tiny model, written by Save LAMP Motion."""
    graph = {
        "model": node("TinyModel", text_width=32, seed=0),
        "random": node("TinyMotion", model=["model", 0], family="", broken=False),
        "save": node(
            "LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/tiny", license="MIT"
        ),
    }
    shown = server.queue(graph).check().outputs["save"]["text"][0]
    return shown.removeprefix("models/lamp_motion/")
