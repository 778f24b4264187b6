"""The same training in two servers: the second reads clips and prompts from the cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.server.host import HostMissing, host_path
from scripts.server.run import RunResult
from scripts.server.server import ComfyServer
from tests.host.test_train import training


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI: {error}")
    return tmp_path_factory.mktemp("base")


class Trained:
    """A training in a server of its own: its log, and the files it left."""

    def __init__(self, base: Path, name: str) -> None:
        # At DEBUG the host logs which models it unloads from the device.
        with ComfyServer(base, args=["--verbose", "DEBUG"]) as server:
            before = len(server.log_text())
            self.result: RunResult = server.queue(training(name)).check()
            self.log = server.log_text()[before:]
        self.motion = load_file(base / f"models/lamp_motion/{name}_00001.safetensors")
        folder = base / "user" / "__lamp_cache"
        self.files = {path.name: path.stat() for path in folder.glob("*.safetensors")}

    def lines(self, pattern: str) -> list[int]:
        """The numbers of the log lines that match a pattern."""
        return [n for n, line in enumerate(self.log.splitlines()) if re.search(pattern, line)]

    def said(self, what: str) -> int:
        """The number of clips whose line below the node ended like this."""
        texts = self.result.texts["train"]
        return len([text for text in texts if re.fullmatch(rf"clip \d of 4 {what}", text)])


@pytest.fixture(scope="module")
def first(base: Path) -> Trained:
    return Trained(base, "first")


@pytest.fixture(scope="module")
def second(base: Path, first: Trained) -> Trained:
    return Trained(base, "second")


def test_the_first_run_caches_clips_and_prompts(first: Trained) -> None:
    kinds = [name.split("-")[0] for name in first.files]
    assert kinds.count("posterior") == 4
    assert kinds.count("prompt") == 5  # the captions, and the empty prompt for samples
    assert first.said("encoded") == 4


def test_vae_and_text_encoder_are_unloaded_before_the_image_model_is_loaded(first: Trained) -> None:
    (unet,) = first.lines(": frozen model")  # the estimate, after the model is loaded
    for name in ("AutoencoderKL", "SD1ClipModel"):
        assert first.lines(f"Requested to load {name}"), name
        assert max(first.lines(f"Unloading {name}")) < unet, name
        assert max(first.lines(f"Requested to load {name}")) < unet, name


def test_the_second_server_encodes_nothing(first: Trained, second: Trained) -> None:
    assert second.said("found in the cache") == 4
    assert second.said("encoded") == 0
    assert not second.lines("Requested to load AutoencoderKL")
    # The same files: not written again, but marked as used.
    assert second.files.keys() == first.files.keys()
    for name, about in second.files.items():
        assert about.st_ino == first.files[name].st_ino
        assert about.st_mtime_ns > first.files[name].st_mtime_ns


def test_the_second_server_trains_the_same_motion(first: Trained, second: Trained) -> None:
    assert first.motion.keys() == second.motion.keys()
    for name, tensor in first.motion.items():
        assert torch.equal(tensor, second.motion[name]), name
