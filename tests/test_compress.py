"""The compact form: what it keeps, what it weighs, and what happens to a damaged file."""

from __future__ import annotations

import base64
import json
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamp.architecture import BlockSite, ConvSite, SiteMap
from lamp.checkpoint import MotionConfig, MotionFile, load_motion_file, save_motion
from lamp.cli import main
from lamp.compress import BYTES_KEY, SIZE, Form, compress, expand
from lamp.errors import LampError, MotionFileError
from lamp.history import save_motion_file
from lamp.merge import merge_motions
from lamp.motion import Motion
from lamp.optimizers import importance, make_optimizer
from lamp.recipe import TrainConfig

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
SITES = SiteMap(
    (ConvSite("conv_in", "conv_in", 96),), (BlockSite(BLOCK, BLOCK, 96, 8),), (), (), "sd1"
)
CONFIG = MotionConfig(family="sd1", prompt="a horse runs")
CONV = "conv_in.conv1d.weight"


def falling(rows: int, columns: int, seed: int, pace: float = 0.8) -> Tensor:
    """A matrix whose singular values are `pace^k`, as what training leaves falls off."""
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, rows, generator=generator))
    return (left * pace ** torch.arange(rows)) @ right.T


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Queries, keys and values are noise, the rest falls off; the query delta is zero."""
    state = dict(Motion(SITES).initialise(0).state_dict())
    generator = torch.Generator().manual_seed(1)
    for seed, (name, tensor) in enumerate(state.items()):
        if tensor.ndim == 1:
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.01
        elif name == CONV or ".to_out." in name:
            state[name] = 0.1 * falling(96, tensor[0].numel(), seed).reshape(tensor.shape)
    return state


def forms_of(text: str) -> dict[str, Any]:
    """`lamp.rank` of a header, as docs/motion_file.md tells."""
    forms: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text)))
    return forms


def header_text(forms: Any) -> str:
    raw = forms if isinstance(forms, str) else json.dumps(forms)
    return base64.b64encode(zlib.compress(raw.encode())).decode()


def round_trip(
    state: dict[str, Tensor], size: float, importance: dict[str, float] | None = None
) -> dict[str, Tensor]:
    data, header = compress(state, size, importance)
    return expand("m", {BYTES_KEY: data}, header)


def error(found: Tensor, wanted: Tensor) -> float:
    """Squared, as a share."""
    return ((found.float() - wanted).square().sum() / wanted.square().sum()).item()


def read_by_the_book(data: bytes, ranks: Any, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """A matrix from its bytes, as docs/motion_file.md tells, bit by bit."""

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
def test_the_bytes_fill_the_size_and_are_no_more(state: dict[str, Tensor], size: float) -> None:
    budget = size * 2 * sum(tensor.numel() for tensor in state.values())
    assert 0.9 * budget < len(compress(state, size)[0]) <= budget


@pytest.mark.parametrize("size", [0.05, 0.2, 0.6])
def test_the_bytes_are_as_the_guide_tells(state: dict[str, Tensor], size: float) -> None:
    data, header = compress(state, size)
    found, raw = round_trip(state, size), data.numpy().tobytes()
    for name, (ranks, rows, *shape) in forms_of(header).items():
        form = (
            Form((), (rows, *shape), ranks) if type(ranks) is int else Form(ranks, (rows, *shape))
        )
        part, raw = raw[: form.bytes], raw[form.bytes :]
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


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9), st.integers(8, 20), st.integers(1, 3), st.integers(0, 99),
    st.sampled_from([1e-6, 1.0, 3e4]),
)  # fmt: skip
def test_any_shape_and_size_comes_back(
    rows: int, columns: int, taps: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = scale * torch.randn(rows, columns, taps, generator=generator)
    found = round_trip({"x": tensor}, 0.75)["x"]  # room for 8 bits a number and the scales
    assert found.shape == tensor.shape
    floor = 1e-7 * tensor.numel() ** 0.5  # the smallest numbers of fp16
    assert (found.float() - tensor).norm().item() <= 0.02 * tensor.norm().item() + floor


def test_what_is_nothing_takes_no_bytes_and_norms_are_as_they_were(
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


def test_no_other_rank_of_these_bytes_is_nearer() -> None:
    """Against plain low-rank factors in one number of bits, the best of all ranks that fit."""
    tensor = falling(64, 192, seed=5, pace=0.9)
    data, header = compress({"x": tensor}, 0.1)
    ours = error(expand("m", {BYTES_KEY: data}, header)["x"], tensor)
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


def test_what_matters_more_is_kept_better() -> None:
    state = two_alike()
    alike = round_trip(state, 0.1, {"a.weight": 1.0, "b.weight": 1.0})
    assert torch.equal(alike["a.weight"], alike["b.weight"])
    found = round_trip(state, 0.1, {"a.weight": 1.0, "b.weight": 1e-6})
    errors = [error(found[name], state[name]) for name in state]
    assert errors[0] < error(alike["a.weight"], state["a.weight"]) < errors[1]
    nothing = round_trip(state, 0.1, {"a.weight": 1.0, "b.weight": 0.0})
    assert not nothing["b.weight"].any()


def test_what_no_training_has_measured_is_taken_alike() -> None:
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


def test_a_file_keeps_the_importance_while_it_is_whole(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
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
def test_an_importance_that_cannot_be_is_named(
    state: dict[str, Tensor], tmp_path: Path, value: Any
) -> None:
    config = replace(CONFIG, importance={CONV: value})
    path = save_motion(tmp_path / "m.safetensors", state, config)
    with pytest.raises(MotionFileError, match=f"importance of {CONV} is out of range"):
        load_motion_file(path)


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
    """Write a compact file with other tensors or header; the sentence that reading it gives."""
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, size=0.2)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()

    def sentence(change: Any = lambda tensors: None, rank: str | None = None) -> str:
        changed = dict(tensors)
        change(changed)
        text = header["lamp.rank"] if rank is None else rank
        save_file(changed, path, metadata={**header, "lamp.rank": text})
        with pytest.raises(MotionFileError) as error:
            load_motion_file(path)
        return str(error.value)

    sentence.forms = forms_of(header["lamp.rank"])  # type: ignore[attr-defined]
    return sentence


def test_bytes_that_are_missing_or_too_few_are_named(damaged: Any) -> None:
    start = "The compact file m.safetensors is damaged ('lamp.compact' is"
    assert damaged(lambda t: t.pop(BYTES_KEY)).startswith(f"{start} missing")
    for change in (lambda x: x[:-1], lambda x: x.float(), lambda x: x[None]):
        told = damaged(
            lambda t, change=change: t.update({BYTES_KEY: change(t[BYTES_KEY]).contiguous()})
        )
        assert told.startswith(f"{start} torch.") and "its header tells of" in told


def test_a_tensor_that_is_there_twice_is_named(damaged: Any) -> None:
    assert f"it holds '{CONV}' twice" in damaged(lambda t: t.update({CONV: torch.zeros(2)}))


def test_scales_that_are_no_numbers_are_named(damaged: Any) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[BYTES_KEY] = torch.full_like(tensors[BYTES_KEY], 255)

    assert f"'{CONV}' holds NaN" in damaged(spoil)


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
def test_forms_that_cannot_be_are_named(damaged: Any, entry: Any) -> None:
    told = damaged(rank=header_text({**damaged.forms, CONV: entry}))
    assert told.startswith("The compact file m.safetensors is damaged ('lamp.rank' in its header")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_header_that_cannot_be_read_is_named(damaged: Any, text: str) -> None:
    assert "is damaged ('lamp.rank'" in damaged(rank=header_text(text))
    assert "is damaged ('lamp.rank'" in damaged(rank=text)


def test_a_header_that_swells_is_not_read_to_its_end(damaged: Any) -> None:
    text = header_text(" " * 10**8 + json.dumps(damaged.forms))
    tracemalloc.start()
    try:
        assert "is damaged ('lamp.rank'" in damaged(rank=text)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()


def test_a_small_file_cannot_ask_for_much_memory(damaged: Any) -> None:
    many = {f"x{i}": [[0, 0, 0, 0], 2**13, 2**14] for i in range(20)}
    assert "more than any motion holds" in damaged(rank=header_text(many))


@pytest.mark.parametrize("size", [0.0, -1.0, 1.5, float("nan")])
def test_a_size_out_of_range_is_named(
    state: dict[str, Tensor], tmp_path: Path, size: float
) -> None:
    with pytest.raises(LampError, match="size is .*above 0 and at most 1"):
        save_motion(tmp_path / "m.safetensors", state, CONFIG, size=size)
    assert not list(tmp_path.iterdir())


def test_a_size_that_leaves_no_room_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(LampError, match="The size is too small: it leaves .* Choose a larger size"):
        save_motion(tmp_path / "m.safetensors", state, CONFIG, size=1e-4)
    assert not list(tmp_path.iterdir())


# --- command and node -----------------------------------------------------------------------------


def test_the_command_tells_the_sizes(
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


def test_the_default_is_what_the_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert f"(default: {SIZE:g})" in " ".join(capsys.readouterr().out.split())


def test_the_node_saves_compactly_when_asked_to(
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
