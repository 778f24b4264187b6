"""The server ends during a training: the next one resumes it with the same result."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from scripts.server.host import HostMissing, host_path
from scripts.server.server import ComfyServer, ServerFailed
from tests.host.test_train import motions, training

_SIGNALS = [
    signal.SIGTERM,
    pytest.param(
        getattr(signal, "SIGKILL", None),
        marks=pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL"),
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("how", _SIGNALS, ids=lambda how: getattr(how, "name", ""))
def test_a_training_resumes_in_the_next_server(tmp_path: Path, how: Any) -> None:
    try:
        host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI: {error}")
    graph = training("stopped", steps=5, save_every=1)
    with ComfyServer(tmp_path) as server:

        def end(event: dict[str, Any]) -> None:
            if event["type"] == "progress_text" and "step 3 of" in event["data"]["text"]:
                assert server._process is not None
                server._process.send_signal(how)

        with pytest.raises(ServerFailed):
            server.queue(graph, end)
    with ComfyServer(tmp_path) as server:
        left = motions(server)
        graph["train"]["inputs"]["resume"] = "latest"
        result = server.queue(graph).check()
        assert not any("step 1 of 5" in text for text in result.texts["train"])
        server.queue(training("straight", steps=5)).check()
        assert set(motions(server)) - set(left) == {
            "stopped_00001.safetensors", "straight_00001.safetensors"
        }  # fmt: skip
    folder = tmp_path / "models/lamp_motion"
    straight, resumed = (
        load_file(folder / f"{name}_00001.safetensors") for name in ("straight", "stopped")
    )
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        np.testing.assert_array_equal(resumed[name], tensor, name)
    parts = [path for path in tmp_path.rglob("*.part") if "custom_nodes" not in path.parts]
    assert not parts
