"""Merging and converting in the real server give the same files as the functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.samples.official_files import official_state
from benchmarks.samples.official_files import write_official as write
from benchmarks.samples.tiny_models import tiny_config, tiny_state
from lamp.hosts.diffusers.unet import build_host
from lamp.method.architecture import base_hash
from lamp.motion_file.convert import LICENSE, convert_official
from lamp.motion_file.file import MotionFile, load_motion_file
from lamp.motion_file.merge import merge_motions
from lamp.motion_file.provenance import LICENSE_KEY, PARENTS_KEY, SOURCE_KEY, save_motion_file
from scripts.server.server import ComfyServer, PromptRejected
from tests.helpers.small_models import random_motion
from tests.host.generate_graphs import Graph, base, ksampler, looking, motions, node

SD1, SD2 = 768, 1024  # width of the text embeddings
WEIGHTS = (0.7, 0.4)


def same(ours: MotionFile, theirs: MotionFile) -> None:
    """Bit-identical, with the same config."""
    assert ours.state.keys() == theirs.state.keys()
    for name, tensor in theirs.state.items():
        assert torch.equal(ours.state[name], tensor), name
    assert ours.config == theirs.config


def refused(server: ComfyServer, graph: Graph, words: str) -> None:
    result = server.queue(graph)
    assert result.error is not None, f"the run ended as {result.status}"
    assert words in result.error.message
    assert "\n" not in result.error.message


def stored(server: ComfyServer, graph: Graph) -> MotionFile:
    """The file that the node `save` of a graph writes."""
    shown = server.queue(graph).check().outputs["save"]["text"][0]
    return load_motion_file(motions(server) / shown.removeprefix("models/lamp_motion/"))


# --- merge ----------------------------------------------------------------------------------------


def random_file(server: ComfyServer, name: str, seed: int, width: int = SD1) -> str:
    graph = {
        "model": node("TinyModel", text_width=width, seed=0),
        "random": node("TinyMotion", model=["model", 0], family="", broken=False, seed=seed),
        "save": node(
            "LAMP_SaveMotion",
            motion=["random", 0],
            filename_prefix=f"merge/{name}",
            license=f"license of {name}",
        ),
    }
    return f"merge/{stored(server, graph).name}"


@pytest.fixture(scope="module")
def pair(server: ComfyServer) -> tuple[str, str]:
    return random_file(server, "a", 1), random_file(server, "b", 2)


def loading(width: int, motion: str) -> dict[str, Graph]:
    graph = base(motion)
    graph["model"]["inputs"]["text_width"] = width
    return {"model": graph["model"], "load": graph["load"]}


def merging(pair: tuple[str, str], weights: tuple[float, float], width: int = SD1) -> Graph:
    first, second = loading(SD1, pair[0]), loading(width, pair[1])
    second["load"]["inputs"]["model"] = ["model 2", 0]
    return {
        **first,
        "model 2": second["model"],
        "load 2": second["load"],
        "merge": node(
            "LAMP_MergeMotions",
            first=["load", 1],
            second=["load 2", 1],
            first_weight=weights[0],
            second_weight=weights[1],
        ),
        "save": node("LAMP_SaveMotion", motion=["merge", 0], filename_prefix="merge/both"),
    }


def test_merging_equals_the_function(
    server: ComfyServer, pair: tuple[str, str], tmp_path: Path
) -> None:
    runs = []
    for _ in range(2):
        server.free()  # clears cached outputs, so that everything runs again
        runs.append(stored(server, merging(pair, WEIGHTS)))
    assert runs[0].name != runs[1].name
    first, second = (load_motion_file(motions(server) / name) for name in pair)
    merged = merge_motions(first, second, WEIGHTS)
    expected = load_motion_file(save_motion_file(tmp_path / "both.safetensors", merged))
    for run in runs:
        same(run, expected)
        for key in (PARENTS_KEY, LICENSE_KEY):
            assert run.metadata[key] == expected.metadata[key]
    assert "license of a" in expected.metadata[LICENSE_KEY]


def test_zero_weights_and_other_families_are_refused(
    server: ComfyServer, pair: tuple[str, str]
) -> None:
    refused(server, merging(pair, (0.0, 0.0)), "Merge LAMP Motions: ")
    other = (pair[0], random_file(server, "sd2", 1, SD2))
    refused(server, merging(other, WEIGHTS, SD2), "SD 2.x")


# --- convert --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(server: ComfyServer) -> Path:
    """A checkpoint of the official training, tuned on the tiny model of seed 0."""
    config = tiny_config(SD1)
    state = tiny_state(config)
    unet = build_host(config, state).unet
    learned = dict(random_motion(unet).state_dict())
    folder = server.base / "models" / "diffusers" / "official horse"
    return write(folder, official_state(state, learned, unet))


def converting(folder: Path, seed: int = 0) -> Graph:
    return {
        "model": node("TinyModel", text_width=SD1, seed=seed),
        "convert": node(
            "LAMP_ConvertOfficial", model=["model", 0], folder=folder.name, prompt=" a horse runs "
        ),
        "save": node("LAMP_SaveMotion", motion=["convert", 0], filename_prefix="converted/horse"),
    }


def test_converting_equals_the_function(
    server: ComfyServer, official: Path, tmp_path: Path
) -> None:
    runs = []
    for _ in range(2):
        server.free()
        runs.append(stored(server, converting(official)))
    config = tiny_config(SD1)
    unet = build_host(config, tiny_state(config)).unet
    file = convert_official(
        official,
        unet,
        base_model="TinyModel",
        base_hash=base_hash(unet),
        prompt="a horse runs",
    )
    expected = load_motion_file(save_motion_file(tmp_path / "horse.safetensors", file))
    for run in runs:
        same(run, expected)
        assert run.metadata[SOURCE_KEY] == expected.metadata[SOURCE_KEY]
        assert run.metadata[LICENSE_KEY] == LICENSE
    assert runs[0].name != runs[1].name


def test_a_converted_motion_moves(server: ComfyServer, official: Path) -> None:
    name = stored(server, converting(official)).name
    graph = base(f"converted/{name}")
    graph["model"] = node("TinyModel", text_width=SD1, seed=0)
    result = server.queue({**graph, "sample": ksampler(), **looking()}).check()
    assert result.outputs["look"]["finite"] == [True]
    assert result.outputs["look"]["first_equal"] == [True]
    assert result.outputs["look"]["rest_moved"] == [True]


def test_another_base_and_a_missing_folder_are_refused(server: ComfyServer, official: Path) -> None:
    refused(server, converting(official, seed=1), "official horse")
    try:
        refused(server, converting(Path("elsewhere")), "'elsewhere'")
    except PromptRejected as error:  # this host checks the menu first
        assert "'elsewhere' not in ['official horse']" in str(error)
