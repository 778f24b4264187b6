"""A short form of benchmarks/robustness/kills.py: kill -9 at random moments."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lamp.files.cache import TensorCache, entry_name
from lamp.method.motion import Motion
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.file import save_motion
from scripts.server.host import ROOT

pytest.importorskip("diffusers")
if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("needs fork", allow_module_level=True)


@pytest.mark.slow
def test_kills_leave_whole_files_and_the_run_ends_as_if_never_killed() -> None:
    """In a process that has not used autograd before it forks."""
    command = [sys.executable, "-m", "benchmarks.robustness"]
    run = subprocess.run(
        [*command, "kills", "--kills", "4"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    told = json.loads(run.stdout.splitlines()[-2])["kills"]
    assert told["problems"] == 0
    assert told["save"] == 1 and told["train"] >= 1


def test_half_files_are_noticed(tmp_path: Path) -> None:
    from benchmarks.robustness import kills

    mixed = Motion(kills.SITES).state_dict()
    save_motion(tmp_path / "m.safetensors", {n: t.fill_(3) for n, t in mixed.items()} | {
        "conv_in.conv1d.bias": torch.full((64,), 4.0)}, MotionConfig("sd1", steps=3))  # fmt: skip
    assert len(kills.check_motion(tmp_path)) == 1
    name = entry_name("posterior", 3)
    TensorCache(tmp_path).get(name, lambda: kills.cache_entry(4))
    assert "entry 3 " in kills.check_cache(tmp_path)[0]
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    assert name in kills.check_cache(tmp_path)[0]
