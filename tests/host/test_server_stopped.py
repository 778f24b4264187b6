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

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # which Windows does not have


def end_during(graph: Graph, base: Path) -> None:
    """A server that is killed in step 3 of its training."""
    with ComfyServer(base) as server:

        def end(event: dict[str, Any]) -> None:
            if event["type"] == "progress_text" and "step 3 of" in event["data"]["text"]:
                assert server._process is not None
                server._process.send_signal(KILL)

        with pytest.raises(ServerFailed):
            server.queue(graph, end)


@pytest.mark.slow
def test_a_training_resumes_in_the_next_server(tmp_path: Path) -> None:
    try:
        host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI: {error}")
    graph = training("stopped", steps=5, save_every=1)
    end_during(graph, tmp_path)
    with ComfyServer(tmp_path) as server:
        left = motions(server)
        graph["train"]["inputs"]["resume"] = "latest"
        result = server.queue(graph).check()
        assert not any("step 1 of 5" in text for text in result.texts["train"])
        server.queue(training("straight", steps=5)).check()
        names = [f"{name}_00001.safetensors" for name in ("straight", "stopped")]
        assert set(motions(server)) - set(left) == set(names)
    straight, resumed = (load_file(tmp_path / "models/lamp_motion" / name) for name in names)
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        np.testing.assert_array_equal(resumed[name], tensor, name)
    parts = [path for path in tmp_path.rglob("*.part") if "custom_nodes" not in path.parts]
    assert not parts
