"""Compression: how much is kept, and where the bytes go."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamp.errors import MotionFileError
from lamp.method.motion import Motion
from lamp.motion_file.compress import SIZE, compress
from lamp.motion_file.encoding import BYTES_KEY, Encoding, decode, read_encodings
from lamp.motion_file.file import MotionFile, load_motion_file, save_motion
from lamp.motion_file.merge import merge_motions
from lamp.motion_file.provenance import save_motion_file
from lamp.training.optimizers import importance, make_optimizer
from lamp.training.recipe import TrainConfig

from ..helpers.compact_motions import (
    BLOCK,
    CONFIG,
    CONV,
    SITES,
    compressible,
    error,
    falling,
    forms_of,
    round_trip,
)

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # many of them


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return compressible()


def read_by_the_book(data: bytes, ranks: Any, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Decode a matrix bit by bit, as docs/motion_file.md specifies."""

    def take(count: int, width: int, bits: int) -> np.ndarray[Any, Any]:
        nonlocal data
        found, size = [], -(-width * bits // 8)
        for _ in range(count):
            numbers, scale, data = data[:size], data[size : size + 2], data[size + 2 :]
            whole = int.from_bytes(numbers, "little")
            values = [(whole >> (i * bits)) % 2**bits - (2**bits - 1) / 2 for i in range(width)]
            (step,) = struct.unpack("<f", b"\0\0" + scale)  # bf16 is the upper half of fp32
            found.append([value * step for value in values])
        return np.array(found).reshape(count, width)

    if ranks == 16:
        return np.frombuffer(data, np.float16).reshape(rows, columns)
    if isinstance(ranks, int):
        return take(rows, columns, ranks)
    pairs = [(take(r, rows, b), take(r, columns, b)) for r, b in zip(ranks, (8, 4, 3, 2))]  # noqa: B905
    assert not data
    return sum(up.T @ down for up, down in pairs)


# --- what it keeps --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.05, SIZE, 0.2, 0.3])
def test_the_bytes_use_up_the_size_and_no_more(state: dict[str, Tensor], size: float) -> None:
    budget = size * 2 * sum(tensor.numel() for tensor in state.values())
    assert 0.9 * budget < len(compress(state, size)[0]) <= budget


@pytest.mark.parametrize("size", [0.05, 0.2, 0.6])
def test_the_bytes_follow_the_specification(state: dict[str, Tensor], size: float) -> None:
    data, header = compress(state, size)
    found, raw = round_trip(state, size), data.numpy().tobytes()
    for name, (ranks, rows, *shape) in forms_of(header).items():
        bits = ranks if type(ranks) is int else 0
        size = Encoding(() if bits else ranks, (rows, *shape), bits).bytes
        part, raw = raw[:size], raw[size:]
        wanted = read_by_the_book(part, ranks, rows, int(np.prod(shape)))
        np.testing.assert_allclose(found[name].reshape(rows, -1), wanted, rtol=2e-3, atol=1e-6)
    assert not raw


def test_the_error_falls_as_the_size_grows(state: dict[str, Tensor]) -> None:
    errors = []
    for size in (0.03, 0.05, 0.1, 0.2, 0.4, 0.6):
        found = round_trip(state, size)
        errors.append(error(found[CONV], state[CONV]))
    assert errors == sorted(errors, reverse=True) and errors[0] < 0.5 and errors[-1] < 1e-3


def test_at_full_size_nothing_changes(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, size=1.0)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["lamp.format"] == "1" and "lamp.rank" not in file.metadata()
    found = load_motion_file(path).state
    assert all(torch.equal(found[name], state[name].half()) for name in state)


@settings(derandomize=True, max_examples=30, deadline=None, database=None)
@given(
    st.integers(1, 9), st.integers(8, 20), st.integers(1, 3), st.integers(0, 99),
    st.sampled_from([1e-6, 1.0, 3e4]),
)  # fmt: skip
def test_any_shape_and_scale_round_trips(
    rows: int, columns: int, taps: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = scale * torch.randn(rows, columns, taps, generator=generator)
    found = round_trip({"x": tensor}, 0.75)["x"]  # room for 8 bits a number and the scales
    assert found.shape == tensor.shape
    floor = 1e-7 * tensor.numel() ** 0.5  # the smallest numbers of fp16
    assert (found.float() - tensor).norm().item() <= 0.02 * tensor.norm().item() + floor


@pytest.mark.parametrize("rank", [2, 5])
def test_a_long_thin_matrix_is_kept_as_well_as_a_wide_one(rank: int) -> None:
    left, right = (
        torch.randn(n, rank, generator=torch.Generator().manual_seed(n)) for n in (60, 5)
    )
    tall = left @ right.T
    for matrix in (tall, tall.T.contiguous()):
        assert error(round_trip({"x": matrix}, 0.75)["x"], matrix) < 1e-3


def test_a_small_file_that_claims_many_rows_takes_little_memory() -> None:
    """A square of its rows would take 20 GB."""
    limit = 4 * 2**30
    code = (
        "import resource, torch\n"
        "from lamp.motion_file.compress import compress\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))\n"
        "compress({'x': torch.randn(50_000, 1)}, 0.5)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_zeros_take_no_bytes_and_norms_stay_exact(
    state: dict[str, Tensor],
) -> None:
    found, forms = round_trip(state, SIZE), forms_of(compress(state, SIZE)[1])
    zero = f"{BLOCK}.attn1.to_q.weight"
    assert forms[zero][0] == [0, 0, 0, 0] and not found[zero].any()
    for name, tensor in state.items():
        assert found[name].shape == tensor.shape
        if tensor.ndim == 1:
            assert torch.equal(found[name], tensor.half())


def test_strong_components_have_more_bits(state: dict[str, Tensor]) -> None:
    (ranks, *_) = forms_of(compress({CONV: state[CONV]}, 0.05)[1])[CONV]
    (finer, *_) = forms_of(compress({CONV: state[CONV]}, 0.2)[1])[CONV]
    assert sum(ranks) < sum(finer) < 96 and ranks[0] < finer[0]
    # More bytes take nothing from the strong ones: so many have at least 8, 4, 3, 2 bits.
    assert all(a <= b for a, b in zip(np.cumsum(ranks), np.cumsum(finer), strict=True))


def test_plain_low_rank_factors_of_the_same_bytes_are_worse() -> None:
    """Compared with plain low-rank factors of one bit width, at the largest rank that fits."""
    tensor = falling(64, 192, seed=5, pace=0.9)
    data, header = compress({"x": tensor}, 0.1)
    ours = error(decode("m", {BYTES_KEY: data}, read_encodings("m", header))["x"], tensor)
    u, values, v = torch.linalg.svd(tensor, full_matrices=False)
    others = []
    for bits in (8, 4, 2):
        rank = len(data) * 8 // ((64 + 192) * bits + 32)
        step = [m.abs().amax(0) * 2 / (2**bits - 1) for m in (u[:, :rank], v[:rank].T)]
        left, right = (
            ((m / s - 0.5).round() + 0.5) * s
            for m, s in zip((u[:, :rank], v[:rank].T), step, strict=True)
        )
        others.append(error(left * values[:rank] @ right.T, tensor))
    assert ours < 0.9 * min(others)


# --- what matters more ----------------------------------------------------------------------------


def two_alike() -> dict[str, Tensor]:
    tensor = falling(64, 64, seed=3, pace=0.9)
    return {"a.weight": tensor, "b.weight": tensor.clone()}


def test_important_tensors_are_kept_better() -> None:
    state = two_alike()
    alike = round_trip(state, 0.1, {"a.weight": 1.0, "b.weight": 1.0})
    assert torch.equal(alike["a.weight"], alike["b.weight"])
    found = round_trip(state, 0.1, {"a.weight": 1.0, "b.weight": 1e-6})
    errors = [error(found[name], state[name]) for name in state]
    assert errors[0] < error(alike["a.weight"], state["a.weight"]) < errors[1]
    nothing = round_trip(state, 0.1, {"a.weight": 1.0, "b.weight": 0.0})
    assert not nothing["b.weight"].any()


def test_without_importance_tensors_count_alike() -> None:
    state = two_alike()
    for known in (None, {}, {"a.weight": 1.0}, {"c.weight": 1.0}):
        found = round_trip(state, 0.1, known)
        assert torch.equal(found["a.weight"], found["b.weight"])


def test_the_importance_is_the_mean_square_of_the_gradients() -> None:
    motion = Motion(SITES).initialise(0)
    optimizer = make_optimizer(motion, TrainConfig(steps=1))
    assert importance(motion, optimizer) == {}
    generator = torch.Generator().manual_seed(4)
    wanted = {}
    for number, (name, parameter) in enumerate(motion.trained_parameters().items()):
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 2.0**-number
        if parameter.ndim > 1:
            wanted[name] = parameter.grad.double().square().mean().item()
    optimizer.step()
    most = max(wanted.values())
    found = importance(motion, optimizer)
    assert max(found.values()) == 1.0
    assert found == pytest.approx({name: mean / most for name, mean in wanted.items()}, rel=6e-3)
    with _NoFloat64():
        assert importance(motion, optimizer) == found


class _NoFloat64(TorchDispatchMode):
    """Like Apple's GPUs, which have no float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return out


def test_full_files_keep_the_importance(state: dict[str, Tensor], tmp_path: Path) -> None:
    known = {name: 0.5 for name, tensor in state.items() if tensor.ndim > 1}
    config = replace(CONFIG, importance=known)
    full = load_motion_file(save_motion(tmp_path / "full.safetensors", state, config))
    assert full.config == config
    small = save_motion_file(tmp_path / "small.safetensors", full, size=SIZE)
    assert load_motion_file(small).config == CONFIG
    assert merge_motions(full, full).config.importance == pytest.approx(known)
    other = MotionFile(full.state, CONFIG)
    assert merge_motions(full, other).config.importance == {}


@pytest.mark.parametrize("value", [-0.1, 1.5, "1", None, True, float("nan")])
def test_a_bad_importance_is_named(state: dict[str, Tensor], tmp_path: Path, value: Any) -> None:
    config = replace(CONFIG, importance={CONV: value})
    path = save_motion(tmp_path / "m.safetensors", state, config)
    with pytest.raises(MotionFileError, match=f"importance.*{CONV}"):
        load_motion_file(path)
