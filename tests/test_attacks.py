"""The long trials of benchmarks/robustness.py in short: what they look at, and that they notice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.host import ROOT, HostMissing, host_path

pytest.importorskip("requests")
pytest.importorskip("diffusers")


def trial(*arguments: str) -> str:
    """The last line of a run of the program, which has to find no problem."""
    command = [sys.executable, "-m", "benchmarks.robustness", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT,
                         env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()[-1]


@pytest.fixture(scope="module", autouse=True)
def _host() -> None:
    try:
        host_path()
    except HostMissing as error:
        pytest.skip(f"needs ComfyUI: {error}")


@pytest.mark.host
@pytest.mark.slow
def test_prompts_of_strangers_leave_a_server_that_works_and_nothing_else() -> None:
    """Half characters, NaN and the like in every input; the rest of the list in the full run."""
    assert trial("prompts", "--prompts", "150") == "prompts 150: 0 problems"


@pytest.mark.host
@pytest.mark.slow
def test_load_loses_nothing_and_leaves_nothing() -> None:
    assert trial("load", "--load", "0.02").endswith(": 0 problems")


def test_a_folder_beside_the_server_is_watched(tmp_path: Path) -> None:
    """The bait is seen to be changed, and a note of the server's to tell of it."""
    from benchmarks.robustness_prompts import _is_sentence, _lay_bait, _state_of

    _lay_bait(tmp_path)
    before = _state_of(tmp_path)
    (tmp_path / "bait").write_bytes(b"not mine")
    assert _state_of(tmp_path) != before
    assert not _is_sentence("half \ud800.") and not _is_sentence("no end") and _is_sentence("So.")


def test_every_text_and_number_is_tried(node_classes: dict[str, object]) -> None:
    from benchmarks.robustness_prompts import every_node

    tried = {node["class_type"] for node in every_node("m").values()}
    assert node_classes.keys() <= tried
