"""Hostile files, see benchmarks/robustness/hostile.py."""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.robustness.hostile import hostile_files
from benchmarks.robustness.watch import Hostile
from lamp.errors import IncompatibleModelError, LampError, MotionFileError
from lamp.files.header import HeaderError, check_file, check_header
from lamp.files.strict_json import read_json
from lamp.hosts.diffusers.single_file import load_single_file
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.convert import find_weights
from lamp.motion_file.file import load_motion_file, save_motion
from lamp.motion_file.provenance import parents
from lamp.training.state import read_state

from ..helpers.compact_motions import CONFIG, SITES, compressible

FILES = [file for file in hostile_files() if "(" in file.kind]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a program would leave traces."""
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "files"


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.kind)
def test_a_hostile_file_does_no_harm(file: Hostile, empty_folder: Path) -> None:
    """It is refused or harmless, in little time and memory, and leaves no files."""
    if "(base)" in file.kind or "(convert)" in file.kind or "(pickle)" in file.kind:
        import diffusers  # noqa: F401  # imported late, it would count as the file's memory

        for attempt in ("first", "second"):  # so would what the libraries keep
            (empty_folder / attempt).mkdir()
            outcome = file.outcome(empty_folder / attempt, file.names[0])
        assert not outcome.problems
    else:
        assert not file.outcome(empty_folder, file.names[-1]).problems


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    '{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]', '{"a": 1, "\\u0061": 2}',
    "9" * 4000, "-" + "9" * 21, '{"a": ' + "1" * 5000 + "}", "[" * 100_000, "", "{", '{"a": 01}',
])  # fmt: skip
def test_ambiguous_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_json(text)


@pytest.mark.parametrize("value", [
    {"a": [1, 2.5, None, "x"], "b": {"a": 1}}, 2**64, -(2**63), [], "\ud800", 1e308,
])  # fmt: skip
def test_other_json_is_read_as_usual(value: object) -> None:
    assert read_json(json.dumps(value)) == value


@pytest.mark.parametrize("entry", [
    {"shape": [2**40, 0]}, {"shape": [0, 3]}, {"shape": [-1]}, {"shape": "x"}, {"shape": [1.5]}, {},
    [], {"shape": [True]}, {"shape": [100, 100]}, {"shape": [2**63, 2**63]},
])  # fmt: skip
def test_a_header_that_claims_more_than_the_file_is_refused(entry: object) -> None:
    header = json.dumps({"good": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
                         "bad": entry}).encode()  # fmt: skip
    with pytest.raises(HeaderError, match="bad"):
        check_header(header, len(header), 12)
    sound = json.dumps({"good": {"shape": [2, 3]}, "empty": {"shape": [0]}}).encode()
    check_header(sound, len(sound), 12)


def test_ambiguous_parents_are_not_shown() -> None:
    text = '[{"name": "xyz", "weight": 1, "name": "qrs"}]'
    assert not {"xyz", "qrs"} & set(parents({"lamp.parents": text}).split())


# --- compact files -------------------------------------------------------------------------------


def rewritten(path: Path, change: object) -> Path:
    """A compact file with changed encodings."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    forms = json.loads(zlib.decompress(base64.b64decode(header["lamp.rank"])))
    change(forms)  # type: ignore[operator]
    text = base64.b64encode(zlib.compress(json.dumps(forms).encode())).decode()
    save_file(load_file(path), path, metadata={**header, "lamp.rank": text})
    return path


def test_ranks_of_zero_take_no_memory(empty_folder: Path) -> None:
    """An untrained motion is valid and loads as zeros."""
    state = {name: torch.zeros_like(tensor) for name, tensor in compressible().items()}
    path = save_motion(empty_folder / "m.safetensors", state, CONFIG, size=0.3)
    file = load_motion_file(path, SITES)
    assert all(not tensor.any() for tensor in file.state.values())
    assert file.state.keys() == state.keys()
    wide = [tensor for tensor in file.state.values() if tensor.ndim > 1]
    assert sum(tensor.untyped_storage().nbytes() for tensor in wide) < 100
    again = load_motion_file(save_motion(empty_folder / "full.safetensors", file.state, CONFIG))
    assert all(torch.equal(again.state[name].float(), state[name].float()) for name in state)


def test_shapes_are_checked_before_memory_is_allocated(empty_folder: Path) -> None:
    path = save_motion(empty_folder / "m.safetensors", compressible(), CONFIG, size=0.3)
    name = next(name for name in compressible() if name.endswith(".attn_temp.to_q.weight"))
    for entry in ([[0, 0, 0, 0], 96, 97], [[0, 0, 0, 0], 2**12, 2**12], [[1, 0, 0, 0], 96, 1]):
        with pytest.raises(MotionFileError, match=name.replace(".", r"\.")):
            load_motion_file(
                rewritten(path, lambda forms, entry=entry: forms.update({name: entry}))
            )


def test_a_motion_for_another_unet_is_refused_before_it_is_read(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*given: object) -> None:
        raise AssertionError("it was unfolded")

    monkeypatch.setattr("lamp.motion_file.file.decode", read)
    path = save_motion(empty_folder / "m.safetensors", compressible(), CONFIG, size=0.3)
    with pytest.raises(IncompatibleModelError):
        load_motion_file(path, SITES.__class__((), (), (), (), "sdxl"))
    with pytest.raises(MotionFileError, match="conv_in"):
        load_motion_file(path, SITES.__class__((), (), (), (), "sd1"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_too_little_memory_is_reported(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*given: object) -> None:
        raise error

    path = save_motion(empty_folder / "m.safetensors", compressible(), CONFIG, size=0.3)
    monkeypatch.setattr("lamp.motion_file.file.decode", fail)
    with pytest.raises(LampError, match="memory"):
        load_motion_file(path)


def test_vectors_that_overflow_fp16_are_kept(empty_folder: Path) -> None:
    state = compressible()
    state["conv_in.conv1d.bias"] = torch.linspace(-1e6, 1e6, 96)
    path = save_motion(empty_folder / "m.safetensors", state, CONFIG, size=0.3)
    found = load_motion_file(path).state["conv_in.conv1d.bias"].float()
    assert (found - state["conv_in.conv1d.bias"]).abs().max() < 1e4


@pytest.mark.parametrize(("field", "value"), [
    ("steps", 10**10), ("steps", -1), ("seed", 2**65), ("frames", -1), ("fps", -0.5),
    ("learning_rate", 1e300), ("learning_rate", float("nan")), ("width", 10**7),
])  # fmt: skip
def test_a_field_out_of_range_is_named(empty_folder: Path, field: str, value: float) -> None:
    config = MotionConfig(family="sd1")
    object.__setattr__(config, field, value)
    path = save_motion(empty_folder / "m.safetensors", {"a": torch.zeros(1)}, config)
    with pytest.raises(MotionFileError, match=field):
        load_motion_file(path)


def test_names_that_are_not_text_do_not_prevent_saving(empty_folder: Path) -> None:
    """As from a checkpoint on an old disk; a long training must not be lost."""
    config = MotionConfig("sd1", prompt="a\udcff", captions=["b\ud800"], base_model="c\udcff.ckpt")
    path = save_motion(
        empty_folder / "m.safetensors", {"a": torch.zeros(1)}, config, title="t\udcff",
        license_name="l\ud800", extra={"work\ud800": "x\udcff"},
    )  # fmt: skip
    file = load_motion_file(path)
    assert (file.config.prompt, file.config.captions) == ("a?", ["b?"])
    assert file.config.base_model == "c?.ckpt" and file.metadata["work?"] == "x?"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_instead_of_a_file_does_not_block(empty_folder: Path) -> None:
    for number, name in enumerate(("m.safetensors", "unet/x.bin", "unet/x.safetensors")):
        path = empty_folder / str(number) / name
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
        weights = lambda p: find_weights(p.parent)  # noqa: E731
        for read in (load_motion_file, read_state, load_single_file, weights):
            with pytest.raises(LampError):
                read(path)


@pytest.mark.parametrize("content", [b"", bytes(8), bytes(1000)])
def test_an_empty_or_unfinished_file_is_called_so(tmp_path: Path, content: bytes) -> None:
    """Some download programs reserve the space with zeros."""
    path = tmp_path / "motion.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match="empty"):
        check_file(path)
