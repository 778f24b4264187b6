"""The compact form: what it keeps, what it weighs, and what happens to a damaged file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from lamp.compress import ENERGY, compress, expand
from lamp.errors import LampError, MotionFileError
from lamp.motion import Motion

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


def energy_kept(found: Tensor, wanted: Tensor) -> float:
    return 1.0 - ((found.float() - wanted).square().sum() / wanted.square().sum()).item()


def round_trip(state: dict[str, Tensor], energy: float) -> dict[str, Tensor]:
    smaller, header = compress(state, energy)
    return expand("m", {**state, **smaller}, header)


# --- what it keeps --------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.5, 0.75, 0.9, 0.98])
def test_each_tensor_keeps_its_energy(state: dict[str, Tensor], energy: float) -> None:
    found = round_trip(state, energy)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].shape == tensor.shape
        if tensor.any():
            # The losses of the components add up but for what their rounding has in common.
            noise = {"to_q": 8, "to_k": 8, "to_v": 4}  # less of what begins as noise
            power = noise.get(name.split(".")[-2], 1) if ".attn_temp." in name else 1
            kept = energy_kept(found[name], tensor)
            assert kept >= energy**power - 0.01, name
            if power > 1:
                assert kept < energy + 0.05, name
        else:
            assert not found[name].any()


def test_the_error_falls_and_the_size_grows_with_the_energy(state: dict[str, Tensor]) -> None:
    sizes, kept = [], []
    for energy in (0.4, 0.6, 0.8, 0.9, 0.97, 0.999):
        smaller, header = compress(state, energy)
        sizes.append(sum(tensor.numel() for tensor in smaller.values() if tensor.ndim == 1))
        kept.append(energy_kept(expand("m", {**state, **smaller}, header)[CONV], state[CONV]))
    assert kept == sorted(kept) and kept[-1] > 0.999 - 1e-4
    assert sizes[:5] == sorted(sizes[:5])


def test_at_full_energy_nothing_changes(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, energy=1.0)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["lamp.format"] == "1" and "lamp.rank" not in file.metadata()
    found = load_motion_file(path).state
    assert all(torch.equal(found[name], state[name].half()) for name in state)
    nearly = round_trip(state, 1.0 - 1e-9)
    for name, tensor in state.items():
        torch.testing.assert_close(nearly[name].float(), tensor, rtol=1e-3, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.floats(0.1, 1.0, exclude_max=True),
    st.integers(0, 99), st.sampled_from([1e-8, 1.0, 3e4]),
)  # fmt: skip
def test_any_shape_and_size_comes_back(
    rows: int, columns: int, taps: int, energy: float, seed: int, size: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = size * torch.randn(rows, columns, taps, generator=generator)
    found = round_trip({"x": tensor}, energy)["x"]
    assert found.shape == tensor.shape
    floor = 1e-7 * tensor.numel() ** 0.5  # the smallest numbers of fp16
    lost = (found.float() - tensor).norm().item()
    assert lost <= ((1 - energy + 0.05) ** 0.5) * tensor.norm().item() + floor


def test_a_matrix_of_low_rank_takes_factors_and_noise_does_not(state: dict[str, Tensor]) -> None:
    forms = json.loads(compress(state, 0.9)[1])
    bits, rank, *shape = forms[CONV]
    assert (bits, shape) == (4, [96, 96, 3])
    values = torch.linalg.svdvals(state[CONV].flatten(1)).square()
    least = int((values.cumsum(0) < 0.9 * values.sum()).sum()) + 1
    assert least <= rank <= least + 3
    noise = f"{BLOCK}.attn_temp.to_q.weight"
    assert json.loads(compress(state, 0.99)[1])[noise][:2] == [4, 0]
    assert all(state[name].ndim > 1 for name in forms)


# --- the file -------------------------------------------------------------------------------------


def test_a_compact_file_loads_like_any_other(state: dict[str, Tensor], tmp_path: Path) -> None:
    full = save_motion(tmp_path / "full.safetensors", state, CONFIG)
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, energy=ENERGY)
    file = load_motion_file(path)
    file.check_against(SITES)
    assert file.config == CONFIG
    expected = round_trip(state, ENERGY)
    assert all(
        torch.equal(file.state[name].float(), expected[name].half().float()) for name in state
    )
    assert {tensor.dtype for tensor in file.state.values()} == {torch.float16}
    assert path.stat().st_size < 0.2 * full.stat().st_size
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata()["lamp.format"] == "2"


@pytest.fixture
def damaged(state: dict[str, Tensor], tmp_path: Path) -> Any:
    """Write a compact file with other tensors or header; the sentence that reading it gives."""
    path = save_motion(tmp_path / "m.safetensors", state, CONFIG, energy=0.8)
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

    sentence.forms = json.loads(header["lamp.rank"])  # type: ignore[attr-defined]
    return sentence


def test_bytes_that_are_missing_or_too_few_are_named(damaged: Any) -> None:
    start = "The compact file m.safetensors is damaged (tensor '" + CONV
    assert damaged(lambda t: t.pop(CONV)).startswith(f"{start}' is missing")
    for change in (lambda x: x[:-1], lambda x: x.float(), lambda x: x[None]):
        told = damaged(lambda t, change=change: t.update({CONV: change(t[CONV]).contiguous()}))
        assert told.startswith(f"{start}' holds torch.") and "its header tells of" in told


def test_scales_that_are_no_numbers_are_named(damaged: Any) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[CONV] = torch.full_like(tensors[CONV], 255)

    assert f"'{CONV}' holds NaN" in damaged(spoil)


@pytest.mark.parametrize(
    "entry",
    [
        [5, 1, 96, 96, 3],
        [4, 97, 96, 96, 3],
        [4, -1, 96, 96, 3],
        [4, 1, 96],
        [4, 1, 96, 96, 3, 1, 1],
        [4, 1, 0, 96],
        [4, 1, -96, -96],
        [4, 1, 96, 2**40],
        [4, 1.0, 96, 96],
        [True, 1, 96, 96],
        ["4", 1, 96, 96],
        [],
        {"bits": 4},
        None,
        7,
    ],
    ids=str,
)
def test_forms_that_cannot_be_are_named(damaged: Any, entry: Any) -> None:
    told = damaged(rank=json.dumps({**damaged.forms, CONV: entry}))
    assert told.startswith("The compact file m.safetensors is damaged ('lamp.rank' in its header")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_header_that_cannot_be_read_is_named(damaged: Any, text: str) -> None:
    assert "is damaged" in damaged(rank=text)


def test_a_small_file_cannot_ask_for_much_memory(damaged: Any) -> None:
    many = {f"x{i}": [4, 0, 2**13, 2**14] for i in range(20)}
    assert "more than any motion holds" in damaged(rank=json.dumps(many))


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.5, float("nan")])
def test_an_energy_out_of_range_is_named(
    state: dict[str, Tensor], tmp_path: Path, energy: float
) -> None:
    with pytest.raises(LampError, match="energy is .*above 0 and at most 1"):
        save_motion(tmp_path / "m.safetensors", state, CONFIG, energy=energy)
    assert not list(tmp_path.iterdir())


# --- command and node -----------------------------------------------------------------------------


def test_the_command_tells_the_sizes(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = save_motion(tmp_path / "full.safetensors", state, CONFIG, license_name="CC0")
    out = tmp_path / "small.safetensors"
    assert main(["compress", str(full), str(out), "--energy", "0.8"]) == 0
    share = out.stat().st_size / full.stat().st_size
    assert f"small.safetensors: 0.0 MB, {share:.1%} of 0.2 MB" in capsys.readouterr().out
    file = load_motion_file(out)
    assert file.metadata["modelspec.license"] == "CC0"
    half = {name: tensor.half() for name, tensor in state.items()}
    expected = round_trip(half, 0.8)
    assert all(torch.equal(file.state[name], expected[name].half()) for name in state)
    assert main(["compress", str(full), str(tmp_path / "x.safetensors"), "--energy", "2"]) == 1
    assert "energy is 2" in capsys.readouterr().err


def test_the_default_is_what_the_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compress", "--help"])
    assert f"(default: {ENERGY:g})" in " ".join(capsys.readouterr().out.split())


def test_the_node_saves_compactly_when_asked_to(
    node_classes: dict[str, Any], state: dict[str, Tensor]
) -> None:
    motion = MotionFile(state, CONFIG)
    node = node_classes["LAMP_SaveMotion"]
    sizes = []
    for options in ({}, {"compact": "on"}, {"compact": "on", "energy": 0.95}, {"energy": 0.5}):
        path = Path(node.execute(replace(motion), "compact", **options)[0])
        sizes.append(path.stat().st_size)
        file = load_motion_file(path)
        wanted = options.get("energy", ENERGY) if "compact" in options else 1.0
        assert energy_kept(file.state[CONV], state[CONV]) >= wanted - 0.01
        path.unlink()
    assert sizes[1] < sizes[2] < sizes[0] == sizes[3]
