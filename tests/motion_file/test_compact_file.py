"""Compact files: they load like others, damaged ones are refused, command and node write them."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamp.cli import main
from lamp.errors import LampError, MotionFileError
from lamp.motion_file.compress import SIZE
from lamp.motion_file.encoding import BYTES_KEY, RANK_KEY
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion

from ..helpers.compact_motions import (
    CONFIG,
    CONV,
    SITES,
    compressible,
    error,
    forms_of,
    header_text,
    round_trip,
)

pytestmark = pytest.mark.slow  # many of them


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return compressible()


# --- the file -------------------------------------------------------------------------------------


def test_a_compact_file_loads_like_any_other(state: dict[str, Tensor], tmp_path: Path) -> None:
    full = save_motion(tmp_path / "full.safetensors", state, CONFIG)
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, size=SIZE)
    file = load_motion_file(path)
    file.check_against(SITES)
    assert file.config == CONFIG
    expected = round_trip({name: tensor.half() for name, tensor in state.items()}, SIZE)
    assert all(
        torch.equal(file.state[name].float(), expected[name].half().float()) for name in state
    )
    assert {tensor.dtype for tensor in file.state.values()} == {torch.float16}
    assert path.stat().st_size < 0.1 * full.stat().st_size
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata()["lamp.format"] == "2"


@pytest.fixture
def damaged(state: dict[str, Tensor], tmp_path: Path) -> Any:
    """Write a compact file with changed tensors or header; returns the error of reading it."""
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, size=0.2)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()

    def error_of(change: Any = lambda tensors: None, rank: str | None = None) -> str:
        changed = dict(tensors)
        change(changed)
        text = header["lamp.rank"] if rank is None else rank
        save_file(changed, path, metadata={**header, "lamp.rank": text})
        with pytest.raises(MotionFileError) as error:
            load_motion_file(path)
        assert "m.safetensors" in str(error.value)
        return str(error.value)

    error_of.forms = forms_of(header["lamp.rank"])  # type: ignore[attr-defined]
    return error_of


def test_missing_or_wrong_bytes_are_named(damaged: Any) -> None:
    assert BYTES_KEY in damaged(lambda t: t.pop(BYTES_KEY))
    for change in (lambda x: x[:-1], lambda x: x.float(), lambda x: x[None]):
        told = damaged(
            lambda t, change=change: t.update({BYTES_KEY: change(t[BYTES_KEY]).contiguous()})
        )
        assert BYTES_KEY in told and "torch." in told


def test_a_tensor_in_both_forms_is_named(damaged: Any) -> None:
    assert CONV in damaged(lambda t: t.update({CONV: torch.zeros(2)}))


def test_nan_scales_are_named(damaged: Any) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[BYTES_KEY] = torch.full_like(tensors[BYTES_KEY], 255)

    error = damaged(spoil)
    assert CONV in error and "NaN" in error


@pytest.mark.parametrize(
    "entry",
    [
        [5, 96, 96, 3],
        [[97, 0, 0, 0], 96, 96, 3],
        [[60, 0, 60, 0], 96, 96, 3],
        [[-1, 0, 0, 1], 96, 96, 3],
        [[1, 0, 0], 96, 96, 3],
        [[], 96, 96, 3],
        [[1.0, 0, 0, 0], 96, 96, 3],
        [[True, 0, 0, 0], 96, 96, 3],
        [[[1], 0, 0, 0], 96, 96, 3],
        [4],
        [4, 96, 96, 3, 1, 1],
        [4, 0, 96],
        [4, -96, -96],
        [4, 96, 2**40],
        [4, 96, 96.0],
        [True, 96, 96],
        ["4", 96, 96],
        [],
        {"bits": 4},
        None,
        7,
    ],
    ids=str,
)
def test_impossible_encodings_are_refused(damaged: Any, entry: Any) -> None:
    assert RANK_KEY in damaged(rank=header_text({**damaged.forms, CONV: entry}))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_an_unreadable_header_is_named(damaged: Any, text: str) -> None:
    assert RANK_KEY in damaged(rank=header_text(text))
    assert RANK_KEY in damaged(rank=text)


def test_a_decompression_bomb_is_not_expanded(damaged: Any) -> None:
    text = header_text(" " * 10**8 + json.dumps(damaged.forms))
    tracemalloc.start()
    try:
        assert RANK_KEY in damaged(rank=text)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()


def test_a_small_file_cannot_claim_much_memory(damaged: Any) -> None:
    many = {f"x{i}": [[0, 0, 0, 0], 2**13, 2**14] for i in range(20)}
    assert RANK_KEY in damaged(rank=header_text(many))


@pytest.mark.parametrize("size", [0.0, -1.0, 1.5, float("nan")])
def test_a_size_out_of_range_is_named(
    state: dict[str, Tensor], tmp_path: Path, size: float
) -> None:
    with pytest.raises(LampError, match=f"size is {size:g}"):
        save_motion(tmp_path / "m.safetensors", state, CONFIG, size=size)
    assert not list(tmp_path.iterdir())


def test_a_size_too_small_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(LampError, match=f"{SIZE:g}"):
        save_motion(tmp_path / "m.safetensors", state, CONFIG, size=1e-4)
    assert not list(tmp_path.iterdir())


# --- command and node -----------------------------------------------------------------------------


def test_the_command_reports_the_sizes(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = save_motion(tmp_path / "full.safetensors", state, CONFIG, license_name="CC0")
    out = tmp_path / "small.safetensors"
    assert main(["compress", str(full), str(out), "--size", "0.2"]) == 0
    share = out.stat().st_size / full.stat().st_size
    assert f"small.safetensors: 0.0 MB, {share:.1%} of 0.2 MB" in capsys.readouterr().out
    file = load_motion_file(out)
    assert file.metadata["modelspec.license"] == "CC0"
    half = {name: tensor.half() for name, tensor in state.items()}
    expected = round_trip(half, 0.2)
    assert all(torch.equal(file.state[name], expected[name].half()) for name in state)
    assert main(["compress", str(full), str(tmp_path / "x.safetensors"), "--size", "2"]) == 1
    assert "size is 2" in capsys.readouterr().err


def test_the_help_names_the_default_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert f"(default: {SIZE:g})" in " ".join(capsys.readouterr().out.split())


def test_the_node_saves_compact_files_on_request(
    node_classes: dict[str, Any], state: dict[str, Tensor]
) -> None:
    motion = MotionFile(state, CONFIG)
    node = node_classes["LAMP_SaveMotion"]
    sizes = []
    for options in ({}, {"compact": "on"}, {"compact": "on", "size": 0.3}, {"size": 0.3}):
        path = Path(node.execute(replace(motion), "compact", **options)[0])
        sizes.append(path.stat().st_size)
        assert error(load_motion_file(path).state[CONV], state[CONV]) < 0.1
        path.unlink()
    assert 3 * sizes[1] < sizes[2] < sizes[0] / 3 and sizes[0] == sizes[3]
