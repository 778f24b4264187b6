"""The server ends during a training: the next one resumes it with the same result."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from scripts.server.host import HostMissing, host_path
from scripts.server.server import ComfyServer, ServerFailed
from tests.host.test_train import Graph, motions, training

# Windows has no SIGKILL.
_SIGNALS = [name for name in ("SIGTERM", "SIGKILL") if hasattr(signal, name)]


def end_during(graph: Graph, base: Path, how: str) -> None:
    """A server whose training gets a signal in step 3, which ends it."""
    with ComfyServer(base) as server:

        def end(event: dict[str, Any]) -> None:
            if event["type"] == "progress_text" and "step 3 of" in event["data"]["text"]:
                assert server._process is not None
                server._process.send_signal(getattr(signal, how))

        with pytest.raises(ServerFailed):
            server.queue(graph, end)


@pytest.mark.slow
def test_a_training_resumes_in_the_next_server(tmp_path: Path) -> None:
    """One training for each signal, since servers take long to start."""
    try:
        host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI: {error}")
    graphs = {how: training(how, steps=5, save_every=1) for how in _SIGNALS}
    for how, graph in graphs.items():
        end_during(graph, tmp_path, how)
    with ComfyServer(tmp_path) as server:
        left = motions(server)
        for graph in graphs.values():
            graph["train"]["inputs"]["resume"] = "latest"
            result = server.queue(graph).check()
            assert not any("step 1 of 5" in text for text in result.texts["train"])
        server.queue(training("straight", steps=5)).check()
        made = {f"{name}_00001.safetensors" for name in (*graphs, "straight")}
        assert set(motions(server)) - set(left) == made
    folder = tmp_path / "models/lamp_motion"
    straight, *resumed = (
        load_file(folder / f"{name}_00001.safetensors") for name in ("straight", *graphs)
    )
    for motion in resumed:
        assert straight.keys() == motion.keys()
        for name, tensor in straight.items():
            np.testing.assert_array_equal(motion[name], tensor, name)
    parts = [path for path in tmp_path.rglob("*.part") if "custom_nodes" not in path.parts]
    assert not parts
