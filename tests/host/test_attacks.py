"""Short runs of benchmarks/robustness, on the server of the other tests."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.robustness.client import every_node
from benchmarks.robustness.load import Size, load_process, load_server
from benchmarks.robustness.prompts import Attack, is_shown, lay_bait, state_of, strange_texts
from benchmarks.robustness.watch import Result
from scripts.server.server import ComfyServer


@pytest.mark.slow
def test_hostile_prompts_leave_a_working_server_and_no_files(
    server: ComfyServer,
) -> None:
    """Paths that leave a folder, lone surrogates, NaN and the like: one in every input. The full
    run has every value in each."""
    attack = Attack(server)
    first = list(itertools.islice(attack.cases(), attack.inputs))
    assert len({(node, name) for node, name, _ in first}) == attack.inputs > 100
    assert {value for *_, value in first if isinstance(value, str)} >= {
        *strange_texts(attack.outside)[:12]
    }
    tried = attack.run(attack.inputs)
    assert tried.problems == [] and tried.counts.total() == attack.inputs


@pytest.mark.slow
def test_load_loses_no_run_and_leaves_no_memory(server: ComfyServer) -> None:
    load = Result()
    load_server(server, Size(prompts=6, cancels=3, stacked=5, shared=4), load)
    assert load.problems == [] and load.counts["prompts"] == 6


@pytest.mark.slow
def test_files_that_change_while_read_are_read_or_refused() -> None:
    load = Result()
    load_process(Size(replaced=15), load)
    assert load.problems == [] and load.counts.total() == 16


def test_every_node_is_covered(server: ComfyServer) -> None:
    tried = {node["class_type"] for node in every_node("m").values()}
    assert {name for name in server.object_info() if name.startswith("LAMP_")} <= tried


def test_a_changed_folder_and_an_unreadable_message_are_detected(tmp_path: Path) -> None:
    lay_bait(tmp_path)
    before = state_of(tmp_path)
    (tmp_path / "bait").write_bytes(b"not mine")
    assert state_of(tmp_path) != before
    assert not is_shown("half \ud800.") and not is_shown("no end") and is_shown("So.")


def test_files_opened_elsewhere_are_detected(server: ComfyServer) -> None:
    attack = Attack(server)
    seen = server.base / "trace.jsonl"
    start = seen.stat().st_size
    notes = [
        ("read", "open", attack.outside / "bait"),
        ("change", "open", server.base.parent / "x"),
        ("run", "subprocess.Popen", "sh"),
    ]
    with seen.open("a") as file:
        for kind, event, path in notes:
            note = {"kind": kind, "event": event, "paths": [str(path)], "details": ""}
            file.write(json.dumps(note) + "\n")
    assert len(attack.touched(start)) == 3
