"""Merged motions, compared with the weighted sum of both."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lamp.cli import main
from lamp.errors import IncompatibleModelError, LampError, MotionFileError
from lamp.method.architecture import BlockSite, ConvSite, SiteMap, map_unet
from lamp.method.motion import Motion
from lamp.motion_file import merge
from lamp.motion_file.config import MotionConfig
from lamp.motion_file.describe import describe_motion
from lamp.motion_file.file import MotionFile, load_motion_file
from lamp.motion_file.merge import merge_motions
from lamp.motion_file.provenance import save_motion_file

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
HEADS, WIDTH, FRAMES = 8, 64, 5
SITES = SiteMap(
    (ConvSite("conv_in", "conv_in", 12),), (BlockSite(BLOCK, BLOCK, WIDTH, HEADS),), (), (), "sd1"
)
FIRST = MotionConfig(family="sd1", prompt="a horse runs", captions=["one"], steps=9, base_hash="x")
SECOND = replace(FIRST, prompt="rain falls", captions=["one", "two"], seed=4)


def motion(seed: int, config: MotionConfig = FIRST, name: str = "a.safetensors") -> MotionFile:
    """Like what training leaves: queries, keys and values begin as noise, outputs have a low rank
    (in a trained toy motion a third of the full one holds nine tenths of the energy)."""
    module = Motion(SITES).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: value + 0.05 * torch.randn(value.shape, generator=generator)
        for key, value in module.state_dict().items()
    }
    left, right = (torch.randn(WIDTH, 6, generator=generator) for _ in range(2))
    state[f"{BLOCK}.attn_temp.to_out.0.weight"] = 0.02 * left @ right.T
    return MotionFile(state, config, name=name)


@pytest.fixture(scope="module")
def first() -> MotionFile:
    return motion(1)


@pytest.fixture(scope="module")
def second() -> MotionFile:
    return motion(2, SECOND, "b.safetensors")


def added(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a motion adds at its sites, for fixed inputs."""
    module = Motion(SITES).requires_grad_(False)
    module.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(FRAMES, 12, 4, 4, generator=generator)
    x = torch.randn(FRAMES, 9, WIDTH, generator=generator)
    block = module.get_submodule(BLOCK)
    return {
        "conv": module.conv_in(y, FRAMES) - y,
        "attention": block.attn_temp(block.norm_temp(x), FRAMES),
        "query": block.attn1.to_q(x),
    }


def distance(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def sum_of_both(first: MotionFile, second: MotionFile, weights: tuple[float, float]):
    one, other = added(first.state), added(second.state)
    return {name: weights[0] * one[name] + weights[1] * other[name] for name in one}


# --- what holds exactly ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75)])
def test_a_motion_merged_with_itself_is_itself(
    first: MotionFile, weights: tuple[float, float]
) -> None:
    merged = merge_motions(first, first, weights)
    for name, tensor in first.state.items():
        torch.testing.assert_close(merged.state[name], tensor, rtol=1e-6, atol=1e-8)


def test_with_a_weight_of_0_the_other_motion_is_exact(
    first: MotionFile, second: MotionFile
) -> None:
    for weights, kept in (((1.0, 0.0), first), ((0.0, 1.0), second)):
        merged = merge_motions(first, second, weights)
        assert merged.state.keys() == kept.state.keys()
        assert all(torch.equal(merged.state[name], kept.state[name]) for name in kept.state)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 0.0), (-0.5, 0.0)])
def test_weights_are_strengths(first: MotionFile, weights: tuple[float, float]) -> None:
    alone = added(first.state)
    for name, found in added(merge_motions(first, first, weights).state).items():
        assert distance(found, sum(weights) * alone[name]) < 1e-6


def test_a_fresh_motion_changes_nothing(first: MotionFile) -> None:
    """It adds nothing, so merging with it changes nothing, not even gates."""
    fresh = replace(first, state=dict(Motion(SITES).initialise(3).state_dict()))
    for merged in (merge_motions(first, fresh, (1, 1)), merge_motions(fresh, first, (1, 1))):
        for name, found in added(merged.state).items():
            assert distance(found, added(first.state)[name]) < 1e-6


def test_motions_with_equal_gates_add_up_exactly(first: MotionFile, second: MotionFile) -> None:
    gates = {name: first.state[name] for name in first.state if "conv_gate" in name}
    other = replace(second, state={**second.state, **gates})
    found = added(merge_motions(first, other, (0.6, 0.9)).state)
    wanted = sum_of_both(first, other, (0.6, 0.9))
    assert distance(found["conv"], wanted["conv"]) < 1e-6
    assert distance(found["query"], wanted["query"]) < 1e-6


def test_the_order_does_not_matter(first: MotionFile, second: MotionFile) -> None:
    one = added(merge_motions(first, second, (0.3, 0.8)).state)
    other = added(merge_motions(second, first, (0.8, 0.3)).state)
    assert all(distance(one[name], other[name]) < 1e-5 for name in one)


# --- what is brought near -------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 1.0), (0.8, 0.2)])
def test_it_is_closer_to_the_sum_than_averaged_parameters(
    first: MotionFile, second: MotionFile, weights: tuple[float, float]
) -> None:
    wanted = sum_of_both(first, second, weights)
    plain = {
        name: weights[0] * t + weights[1] * second.state[name] for name, t in first.state.items()
    }
    merged, mean = added(merge_motions(first, second, weights).state), added(plain)
    away = distance(merged["attention"], wanted["attention"])
    assert away < 0.6 * distance(mean["attention"], wanted["attention"])
    assert distance(merged["conv"], wanted["conv"]) < 0.3


def test_values_are_the_best_approximation_per_head(first: MotionFile, second: MotionFile) -> None:
    """Eckart and Young: from the singular values of the summed products, per head."""
    merged = merge_motions(first, second, (0.6, 0.4)).state
    rows = WIDTH // HEADS

    def product(state: dict[str, Tensor], head: int) -> Tensor:
        part = slice(head * rows, (head + 1) * rows)
        out, v = (state[f"{BLOCK}.attn_temp.{name}.weight"] for name in ("to_out.0", "to_v"))
        return out[:, part].double() @ v[part].double()

    for head in range(HEADS):
        wanted = 0.6 * product(first.state, head) + 0.4 * product(second.state, head)
        lost = torch.linalg.svdvals(wanted)[rows:].norm()
        torch.testing.assert_close((product(merged, head) - wanted).norm(), lost, rtol=1e-3, atol=0)


# --- what it tells --------------------------------------------------------------------------------


def test_the_result_records_parents_and_licences(
    first: MotionFile, second: MotionFile, tmp_path: Path
) -> None:
    free = replace(first, metadata={"modelspec.license": "CC0"})
    bound = replace(second, metadata={"modelspec.license": "CC BY-NC 4.0"})
    path = save_motion_file(tmp_path / "m.safetensors", merge_motions(free, bound, (0.75, 0.5)))
    file = load_motion_file(path)
    assert json.loads(file.metadata["lamp.parents"]) == [
        {"name": "a.safetensors", "weight": 0.75, "prompt": "a horse runs"},
        {"name": "b.safetensors", "weight": 0.5, "prompt": "rain falls"},
    ]
    assert file.metadata["modelspec.license"] == "CC0 and CC BY-NC 4.0"
    assert file.config.prompt == "a horse runs, rain falls"
    assert sorted(file.config.captions) == ["one", "one", "two"]  # one for each clip
    assert file.config.steps == 0 and file.config.base_hash == "x"
    assert "Merged from: a.safetensors (0.75), b.safetensors (0.5)" in describe_motion(file)


def test_the_words_of_captions_stay_trigger_words(first: MotionFile) -> None:
    captions = ["A lantern swings", "a red lantern swings"]
    second = motion(2, replace(SECOND, prompt="", captions=captions))
    for pair in ((first, second), (second, first), (second, second)):
        words = set(merge_motions(*pair).config.trigger.replace(",", "").split())
        assert words == {word for file in pair for word in file.config.trigger.split()}
    assert second.config.trigger == "lantern swings"


def test_a_motion_of_weight_0_leaves_no_trace(first: MotionFile, second: MotionFile) -> None:
    bound = replace(second, metadata={"modelspec.license": "CC BY-NC 4.0"})
    merged = merge_motions(first, bound, (0.8, 0.0))
    untrained = {"steps": 0, "learning_rate": 0.0, "seed": 0}
    assert merged.config == replace(first.config, **untrained)
    assert "modelspec.license" not in merged.metadata
    assert [parent["name"] for parent in json.loads(merged.metadata["lamp.parents"])] == [
        first.name
    ]


def test_only_common_sizes_and_rates_are_recorded() -> None:
    first = motion(1, replace(FIRST, frames=16, width=512, height=320, fps=10.0))
    second = motion(2, replace(FIRST, frames=16, width=512, height=256, fps=30.0))
    config = merge_motions(first, second).config
    assert (config.frames, config.width, config.height, config.fps) == (16, 512, 0, 0)


def test_unreadable_parents_are_reported(first: MotionFile) -> None:
    huge = '[{"name": "a", "weight": 1' + "0" * 400 + "}]"
    for text in ("{", "[1]", '[{"name": 1}]', "7", huge):
        told = describe_motion(replace(first, metadata={"lamp.parents": text}))
        assert "Merged from: not readable" in told


# --- refused merges ----------------------------------------------------------------------------


def refused(first: MotionFile, second: MotionFile, words: str) -> None:
    with pytest.raises(LampError, match=words):
        merge_motions(first, second)


def test_incompatible_motions_are_named(first: MotionFile, second: MotionFile) -> None:
    both = "a.safetensors and b.safetensors.*"
    for change, words in (
        ({"family": "sdxl"}, f"^{both}SD 1.x.*SD-XL"),
        ({"groupnorm": "frame"}, f"^{both}groupnorm.*pooled.*frame"),
    ):
        refused(first, replace(second, config=replace(SECOND, **change)), words)
    name = "conv_in.conv1d.weight"
    narrow = {**second.state, name: torch.zeros(6, 6, 3)}
    words = rf"^{both}second.*{name}.*\(6, 6, 3\).*\(12, 12, 3\)"
    refused(first, replace(second, state=narrow), words)
    less = {key: value for key, value in second.state.items() if key != name}
    refused(first, replace(second, state=less), f"^{both}second.*{name}.* missing")
    refused(replace(first, state=less), second, f"^{both}second.*{name}.* unknown")
    with pytest.raises(MotionFileError):
        merge_motions(first, replace(second, state=narrow))


def test_absurd_values_are_merged_or_named(first: MotionFile, second: MotionFile) -> None:
    """Squares of 1e30 and sums of two 3e38 overflow fp32."""

    def with_convolution(value: float) -> MotionFile:
        large = torch.full_like(first.state["conv_in.conv1d.weight"], value)
        return replace(first, state={**first.state, "conv_in.conv1d.weight": large})

    merged = merge_motions(with_convolution(1e30), second, (1.0, 1.0))
    assert all(tensor.isfinite().all() for tensor in merged.state.values())
    # the gate follows the stronger one
    gate = "conv_in.conv_gate.weight"
    assert torch.equal(merged.state[gate], first.state[gate])
    with pytest.raises(MotionFileError, match="conv_in.conv1d.weight"):
        merge_motions(with_convolution(3e38), with_convolution(3e38), (1.0, 1.0))


def test_weights_of_0_are_refused(first: MotionFile, second: MotionFile) -> None:
    with pytest.raises(LampError, match="0"):
        merge_motions(first, second, (0.0, 0.0))


def test_unknown_attention_heads_are_refused(first: MotionFile) -> None:
    for family in ("text16", "text64"):  # another model with the toy's text width
        small = replace(first, config=replace(FIRST, family=family))
        with pytest.raises(IncompatibleModelError, match="heads"):
            merge_motions(small, small)


@pytest.mark.slow
def test_the_toy_base_is_recognised_by_its_shapes() -> None:
    from lamp.toy.base import UNET_CONFIG, build_unet

    def of(**changes: Any) -> MotionFile:
        unet = build_unet({**UNET_CONFIG, **changes})
        state = Motion(map_unet(unet)).initialise(0).state_dict()
        return MotionFile(state, replace(FIRST, family="text64"), name="a.safetensors")

    assert UNET_CONFIG["attention_head_dim"] == merge._TOY_HEADS
    toy = of()
    merged = merge_motions(toy, toy, (1.0, 0.0)).state
    assert all(torch.equal(merged[name], value) for name, value in toy.state.items())
    for changes in ({"block_out_channels": [64, 128, 64]}, {"layers_per_block": 2}):
        with pytest.raises(IncompatibleModelError):
            merge_motions(of(**changes), of(**changes))


# --- command and node -----------------------------------------------------------------------------


def test_the_command_writes_the_merged_motion(
    first: MotionFile,
    second: MotionFile,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    paths = [
        save_motion_file(tmp_path / file.name, file, dtype=torch.float32)
        for file in (first, second)
    ]
    out = tmp_path / "both.safetensors"
    arguments = ["merge", *map(str, paths), str(out), "--weights", "0.2", "1.5"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "Merged from: a.safetensors (0.2), b.safetensors (1.5)" in told.out
    assert "merging" in told.err and f"{len(first.state)}/{len(first.state)}" in told.err
    wanted = merge_motions(first, second, (0.2, 1.5)).state
    found = load_motion_file(out).state
    assert all(torch.equal(found[name], wanted[name].half()) for name in wanted)
    before = out.read_bytes()
    assert main(arguments) == 1
    assert "both.safetensors" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(["merge", *map(str, paths), str(tmp_path / "both.bin")]) == 1
    assert "both.bin" in capsys.readouterr().err


def test_the_node_merges_and_saving_keeps_the_history(
    node_classes, first: MotionFile, second: MotionFile
) -> None:
    node = node_classes["LAMP_MergeMotions"]
    merged = node.execute(first, second, 0.4, 0.6)[0]
    wanted = merge_motions(first, second, (0.4, 0.6))
    assert all(torch.equal(merged.state[name], wanted.state[name]) for name in wanted.state)
    path = Path(node_classes["LAMP_SaveMotion"].execute(merged, "merged")[0])
    assert load_motion_file(path).metadata["lamp.parents"] == wanted.metadata["lamp.parents"]
    path.unlink()
    other = replace(second, config=replace(SECOND, groupnorm="frame"))
    with pytest.raises(LampError, match="^Merge LAMP Motions: a.safetensors and b.safetensors"):
        node.execute(first, other)
