"""The independent reader printed in docs/motion_file.md reads the files of this pack."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamp.motion_file.file import load_motion_file, save_motion
from scripts.server.host import ROOT

from ..helpers.compact_motions import CONFIG, CONV, compressible, forms_of

Reader = Callable[[Path], tuple[dict[str, str], dict[str, NDArray[Any]]]]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return compressible()


@pytest.fixture(scope="module")
def read_motion(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The printed reader as a module, without the two example lines."""
    page = (ROOT / "docs" / "motion_file.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "zlib" in block)
    lines, use = code.split('\nheader, tensors = read_motion("')
    assert use.count("\n") == 2 and "lamp." not in re.sub(r'"lamp\.\w+"', "", lines)
    path = tmp_path_factory.mktemp("reader") / "reader.py"
    path.write_text(lines, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("reader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    read: Reader = module.read_motion
    return read


def compare(read_motion: Reader, path: Path) -> dict[str, Any]:
    """Compare the reader's tensors with the pack's: bit-identical except for rounded products.
    Returns the encodings in the file."""
    header, found = read_motion(path)
    file = load_motion_file(path)
    assert header == file.metadata and found.keys() == file.state.keys()
    assert json.loads(header["lamp.config"])["prompt"] == file.config.prompt == "a horse runs"
    forms = forms_of(header["lamp.rank"]) if "lamp.rank" in header else {}
    for name, tensor in file.state.items():
        wanted = tensor.numpy()
        assert (found[name].shape, found[name].dtype) == (wanted.shape, wanted.dtype), name
        if name in forms and isinstance(forms[name][0], list):
            apart = np.abs(found[name].astype(np.float64) - wanted)
            half = wanted.dtype == np.float16
            assert (apart <= (np.spacing(np.abs(wanted)) if half else 1e-6 * wanted.max())).all()
            assert not half or (apart > 0).mean() < 1e-3, name
        else:
            assert np.array_equal(found[name], wanted), name
    return forms


def test_a_plain_file(read_motion: Reader, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG)
    assert compare(read_motion, path) == {}
    assert {tensor.dtype for tensor in read_motion(path)[1].values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("size", [1.0, 0.15])
def test_values_that_overflow_fp16(
    read_motion: Reader, state: dict[str, Tensor], tmp_path: Path, size: float
) -> None:
    large = {**state, CONV: state[CONV] * 1e8}
    path = save_motion(tmp_path / "m.safetensors", large, CONFIG, size=size)
    compare(read_motion, path)
    assert read_motion(path)[1][CONV].dtype == np.float32


def test_compact_files_of_every_encoding(
    read_motion: Reader, state: dict[str, Tensor], tmp_path: Path
) -> None:
    bits, ranks = set(), np.zeros(4, int)
    for size in (0.02, 0.085, 0.15, 0.4):
        path = save_motion(tmp_path / f"{size}.safetensors", state, CONFIG, size=size)
        for form, *_ in compare(read_motion, path).values():
            if isinstance(form, list):
                ranks += form
            else:
                bits.add(form)
    assert bits == {16, 8, 4, 3, 2} and (ranks > 0).all()


def test_a_file_trained_at_low_rank(
    read_motion: Reader, state: dict[str, Tensor], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = (torch.randn(5, *shape, generator=generator) for shape in ((96,), (96, 3)))
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, factors={CONV: (up, down)})
    assert compare(read_motion, path) == {CONV: [[5, 0, 0, 0], 96, 96, 3]}
    product = torch.einsum("ro,rik->oik", up, down).numpy()
    assert np.linalg.norm(read_motion(path)[1][CONV] - product) < 0.02 * np.linalg.norm(product)
