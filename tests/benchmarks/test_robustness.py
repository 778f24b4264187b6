"""A short form of `python -m benchmarks.robustness`, and that it detects what goes wrong."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.robustness.loaders import LOADERS, Loader, Trial
from benchmarks.robustness.mutations import (
    damaged_tensors,
    damaged_text,
    pack,
    same_each_time,
    unpack,
)
from benchmarks.robustness.watch import watch
from lamp.errors import LampError

ROOT = Path(__file__).parents[2]
FEW = {"motion": 120, "inspect": 80, "state": 25, "resume": 30, "cache": 80}
FEW |= {"merge": 200, "convert": 25, "pickle": 35}


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS, ids=[loader.name for loader in LOADERS])
def test_bad_files_are_refused_with_a_sentence_or_loaded(
    loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nobody else writes
    if loader.name in ("state", "resume"):
        pytest.importorskip("diffusers")
    trial = Trial(loader, tmp_path, seed=7)
    outcomes = [trial.run(number) for number in range(FEW.get(loader.name, 60))]
    assert not [f"{each.label}: {problem}" for each in outcomes for problem in each.problems]
    # The damage is neither too coarse nor without effect.
    assert {outcome.became for outcome in outcomes} == {"loaded", "refused"}


@pytest.mark.slow
def test_the_same_number_is_the_same_file() -> None:
    sound = pack(json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                             "__metadata__": {"lamp.config": '{"a": [1, 2]}'}}).encode(),
                 bytes(8))  # fmt: skip
    assert unpack(sound)[1] == bytes(8)
    for damage, data in ((damaged_tensors, sound), (damaged_text, b"a = 1\nb = 2\n")):
        first, again, others = (
            [damage(Random(seed + number), data) for number in range(80)] for seed in (0, 0, 999)
        )
        assert first == again != others
        kinds = {kind for _, kind in first}
        assert len(kinds) >= 5 and sum(made != data for made, _ in first) > 60


def test_a_sound_file_is_the_same_whenever_it_is_written(tmp_path: Path) -> None:
    texts = {f"text {number}": str(number) for number in range(20)}
    made = set()
    for year in range(2025, 2030):
        date = f"{year}-01-01T00:00:00Z"
        file = tmp_path / f"{year}.safetensors"
        save_file({"a": torch.ones(2)}, file, metadata={**texts, "modelspec.date": date})
        made.add(same_each_time(file.read_bytes()))
    assert len(made) == 1
    file.write_bytes(made.pop())
    with safe_open(file, framework="pt") as read:
        assert read.metadata().keys() == {*texts, "modelspec.date"}
        assert torch.equal(read.get_tensor("a"), torch.ones(2))


def _loiter(path: Path) -> object:
    return sum(range(10**6))


def _unpickle(path: Path) -> object:
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize(
    ("load", "noticed"),
    [
        (lambda path: 1 / 0, "ZeroDivisionError"),
        (lambda path: os.mkdir(path.with_name("new")), "trace: os.mkdir.*wrote.*new"),
        (lambda path: path.with_name("made").write_text("x"), "trace: open.*made"),
        (lambda path: os.system("true"), "trace: os.system"),
        (_unpickle, "trace: pickle.find_class"),
        (_loiter, "took 0.* s"),
    ],
)
def test_what_must_not_happen_is_noticed(
    load: Callable[[Path], object],
    noticed: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    torch.save({"a": torch.ones(1)}, file)
    outcome = watch(file, load, seconds=0.002)
    assert re.search(noticed, " ".join(outcome.problems)), outcome


def test_too_much_memory_is_noticed(tmp_path: Path) -> None:
    # In a process of its own: what earlier tests give back meanwhile would hide the peak.
    file = tmp_path / "file"
    file.write_bytes(b"few")
    script = (
        "import sys; from pathlib import Path; from benchmarks.robustness.watch import watch;"
        "print(watch(Path(sys.argv[1]), lambda path: bytes([1]) * (64 * 2**20)).problems)"
    )
    run = [sys.executable, "-c", script, str(file)]
    said = subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.search("took (6[4-9]|7.) MiB for 0.00 MiB", said), said


@pytest.mark.parametrize("sentence", ["no end", "x" * 3000 + "."])
def test_a_refusal_that_nobody_can_read_is_noticed(sentence: str, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise LampError(sentence)

    file = tmp_path / "file"
    file.write_bytes(struct.pack("<Q", 0))
    assert len(watch(file, refuse).problems) == 1
