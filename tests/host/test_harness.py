"""The test harness records what a server does, can cancel it, and never leaves it running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.server.host import ROOT
from scripts.server.server import ComfyServer, ServerFailed

_KEEP_ONE = """
import sys, time
from pathlib import Path
from scripts.server.server import ComfyServer
with ComfyServer(Path(sys.argv[1])) as server:
    print(server._process.pid, flush=True)
    time.sleep(600)
"""


def probe(steps: int, seconds_per_step: float) -> dict[str, dict[str, Any]]:
    inputs = {"steps": steps, "seconds_per_step": seconds_per_step}
    return {"7": {"class_type": "Probe", "inputs": inputs}}


def test_progress_previews_and_texts_are_recorded(server: ComfyServer) -> None:
    result = server.queue(probe(3, 0.15)).check()
    assert result.progress[-1] == ("7", 3, 3)
    assert result.previews == 3
    assert result.texts == {"7": ["3 steps"]}
    assert result.outputs["7"] == {"steps": [3]}


def test_a_run_can_be_cancelled_and_the_next_one_works(server: ComfyServer) -> None:
    pressed: list[None] = []

    def press(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and not pressed:
            pressed.append(server.interrupt())

    result = server.queue(probe(200, 0.05), press)
    assert result.status == "interrupted"
    with pytest.raises(RuntimeError, match="interrupted"):
        result.check()
    server.queue(probe(1, 0.0)).check()


def test_a_run_that_takes_too_long_is_cancelled(server: ComfyServer) -> None:
    with pytest.raises(TimeoutError, match="no end after 1 s"):
        server.queue(probe(200, 0.05), timeout=1.0)
    # The long run would have taken 10 s more, and the next one does not wait for it.
    server.queue(probe(1, 0.0)).check()
    assert server.get("/queue")["queue_running"] == []


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="no-such-option"):
        with ComfyServer(tmp_path, args=["--no-such-option"]):
            pytest.fail("the server should not have started")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_the_server_ends_with_its_owner(tmp_path: Path, how: str) -> None:
    if os.name == "nt":
        pytest.skip("needs POSIX signals")
    command = [sys.executable, "-c", _KEEP_ONE, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        owner.send_signal(signal.Signals[how])
        owner.wait(20)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and _alive(server):
        time.sleep(0.1)
    assert not _alive(server)


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
