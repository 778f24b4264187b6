"""Fixtures for all tests."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lamp.motion_file.file import MotionFile
from scripts.server.host import (
    ROOT,
    HostMissing,
    host_path,
    load_pack,
    make_base_directory,
    use_host,
)

# A second thread spins while it waits, which on a busy machine costs far more than it gains;
# and one thread gives the same sums on every machine.
torch.set_num_threads(1)


def pytest_configure() -> None:
    # A shell's background job ignores Ctrl-C, and so would the processes that the tests interrupt.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of many short tests come last, so that no worker waits for another's long one."""
    items.sort(key=lambda item: "project" in item.path.parts)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _heard_warnings() -> Any:
    """A benchmark that silences logging in this process does so for its own test alone."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference results and real clips that are too large for the repository."""
    path = Path(os.environ.get("LAMP_SHARED") or ROOT.parent / "shared")
    if not path.is_dir():
        pytest.skip("needs ../shared (or LAMP_SHARED) with the reference fixtures and clips")
    return path


@pytest.fixture(scope="session")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """ComfyUI inside this process, on the CPU, with an empty base directory of its own.

    Afterwards `import comfy...`, `folder_paths` and `nodes` mean ComfyUI's modules.
    """
    base = make_base_directory(tmp_path_factory.mktemp("comfy"))
    try:
        host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI: {error}")
    use_host(base)  # fails, rather than skips, where a ComfyUI is there but lacks packages
    importlib.import_module("comfy.model_management")
    return importlib.import_module("comfy")


@pytest.fixture(scope="session")
def pack(comfy: ModuleType) -> ModuleType:
    """This repository as ComfyUI loads it: the package `comfyui_lamp`, nodes imported."""
    package = load_pack()
    importlib.import_module(f"{package.__name__}.nodes")
    return package


@pytest.fixture(scope="session")
def node_classes(pack: ModuleType) -> dict[str, Any]:
    """Node id -> node class, for calling `node_classes["LAMP_..."].execute(...)`."""

    async def listed() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(listed())}


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest, comfy: ModuleType) -> Any:
    """ComfyUI's MODEL of a tiny UNet of SD 1.x's shape; of one level in files marked `shallow`."""
    from benchmarks.samples.tiny_models import shallow_patcher, tiny_patcher

    shallow = request.node.get_closest_marker("shallow")
    return shallow_patcher() if shallow else tiny_patcher()


@pytest.fixture(scope="module")
def file(plain: Any) -> MotionFile:
    """A random motion for `plain`, as read from a file."""
    from benchmarks.samples.tiny_models import random_motion

    return random_motion(plain)


@pytest.fixture(scope="module")
def toy(node_classes: dict[str, Any]) -> Any:
    """MODEL, CLIP and VAE of the toy base, as its node gives them."""
    with torch.inference_mode():
        return node_classes["LAMP_LoadToyBase"].execute().result
