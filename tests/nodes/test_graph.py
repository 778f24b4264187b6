"""The prompts of the samplers behind a loader, and the words of a motion that they lack."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pytest


@pytest.fixture
def graph(node_classes: dict[str, Any]) -> Any:
    package = node_classes["LAMP_LoadMotion"].__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.graph")


def workflow(text: Any, **more: Any) -> dict[str, Any]:
    """Checkpoint -> motion -> another patch -> sampler, with two prompts."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15"}},
        "2": {"class_type": "LAMP_LoadMotion", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "FreeU", "inputs": {"model": ["2", 0], "b1": 1.1}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a horse runs"}},
        "6": {
            "class_type": "KSampler",
            "inputs": {"model": ["3", 0], "positive": ["4", 0], "negative": ["5", 0], "seed": 1},
        },
        **more,
    }


def test_the_positive_prompt_is_found_behind_other_nodes(graph: Any) -> None:
    assert graph.prompts_below(workflow("a red bird"), 2) == ["a red bird"]


def test_through_a_control_net_and_a_guider(graph: Any) -> None:
    control = {"class_type": "ControlNetApply", "inputs": {"conditioning": ["4", 0], "image": []}}
    guider = {"class_type": "BasicGuider", "inputs": {"model": ["2", 0], "conditioning": ["7", 0]}}
    nodes = {**workflow("a red bird"), "7": control, "8": guider}
    del nodes["6"]
    assert graph.prompts_below(nodes, "2") == ["a red bird"]


def test_only_prompts_of_samplers_with_the_motion_count(graph: Any) -> None:
    """Not the empty one of an inversion, nor that of an image model that upscales the video."""
    decoded = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}}
    encoded = {"class_type": "VAEEncode", "inputs": {"pixels": ["7", 0], "vae": ["1", 2]}}
    empty = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}}
    sharp = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "sharp"}}
    again = {"model": ["1", 0], "positive": ["10", 0], "latent_image": ["8", 0]}
    inverts = {"model": ["3", 0], "conditioning": ["9", 0], "latent": ["8", 0]}
    more = {"7": decoded, "8": encoded, "9": empty, "10": sharp}
    more["11"] = {"class_type": "KSampler", "inputs": again}
    more["12"] = {"class_type": "LAMP_DDIMInversion", "inputs": inverts}
    assert graph.prompts_below(workflow("a red bird", **more), 2) == ["a red bird"]
    again["model"] = ["3", 0]
    found = graph.prompts_below(workflow("a red bird", **more), 2)
    assert sorted(found) == ["a red bird", "sharp"]


def test_through_a_switch_of_any_type(graph: Any) -> None:
    switch = {"switch": True, "on_true": ["2", 0], "on_false": ["1", 0]}
    nodes = workflow("a red bird", **{"7": {"class_type": "ComfySwitchNode", "inputs": switch}})
    nodes["3"]["inputs"]["model"] = ["7", 0]
    assert graph.prompts_below(nodes, 2) == ["a red bird"]


def test_pictures_carry_no_prompt(graph: Any) -> None:
    """Neither that of a hint that another sampler drew, nor the motion to a model that it feeds."""
    drawn = {"model": ["1", 0], "positive": ["5", 0], "negative": ["5", 0]}  # "a horse runs"
    hint = {"positive": ["4", 0], "negative": ["5", 0], "image": ["8", 0]}
    more = {
        "7": {"class_type": "KSampler", "inputs": drawn},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "ControlNetApplyAdvanced", "inputs": hint},
    }
    nodes = workflow("a horse", **more)
    nodes["6"]["inputs"]["positive"] = ["9", 0]
    assert graph.prompts_below(nodes, 2) == ["a horse"]
    adapter = {"model": ["1", 0], "image": ["11", 0]}
    other = {"model": ["12", 0], "positive": ["13", 0], "negative": ["5", 0]}
    nodes |= {
        "11": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "12": {"class_type": "IPAdapter", "inputs": adapter},
        "13": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a bottle"}},
        "14": {"class_type": "KSampler", "inputs": other},
    }
    assert graph.prompts_below(nodes, 2) == ["a horse"]


def test_a_text_that_another_node_holds_or_makes(graph: Any) -> None:
    held = {"class_type": "PrimitiveString", "inputs": {"value": "a red bird"}}
    assert graph.prompts_below(workflow(["9", 0], **{"9": held}), 2) == ["a red bird"]
    made = {"class_type": "Captioner", "inputs": {"image": ["1", 0], "style": "long"}}
    assert graph.prompts_below(workflow(["9", 0], **{"9": made}), 2) is None


@pytest.mark.parametrize(
    "inputs",
    [{"file": "prompts.txt"}, {"image": "horse.png"}, {"wildcard": "animals"}, {"index": 3}],
)
def test_a_text_that_is_no_prompt_is_not_taken_for_one(graph: Any, inputs: dict[str, Any]) -> None:
    nodes = workflow(["9", 0], **{"9": {"class_type": "Prompts", "inputs": inputs}})
    assert graph.prompts_below(nodes, 2) is None


@pytest.mark.parametrize("text", ["a __animal__ runs", "a {red|white} bird", "a __a/b-c*__ runs"])
def test_a_wildcard_is_not_known_yet(graph: Any, text: str) -> None:
    assert graph.prompts_below(workflow(text), 2) is None


def test_joined_prompts_count_together_and_those_of_two_samplers_do_not(graph: Any) -> None:
    other = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "runs"}}
    joined = {"conditioning_to": ["4", 0], "conditioning_from": ["8", 0]}
    concat = {"class_type": "ConditioningConcat", "inputs": joined}
    nodes = workflow("a horse", **{"7": concat, "8": other})
    nodes["6"]["inputs"]["positive"] = ["7", 0]
    assert graph.missing_words("horse runs", graph.prompts_below(nodes, 2)) == []
    second = {"model": ["2", 0], "positive": ["4", 0], "negative": ["5", 0]}
    nodes["9"] = {"class_type": "KSampler", "inputs": second}
    assert graph.missing_words("horse runs", graph.prompts_below(nodes, 2)) == ["runs"]


@pytest.mark.parametrize("nodes", [None, {}, {"2": {"inputs": {}}}])
def test_no_sampler_is_no_prompt(graph: Any, nodes: Any) -> None:
    assert graph.prompts_below(nodes, 2) is None


def test_a_circle_ends(graph: Any) -> None:
    circle = {"class_type": "Combine", "inputs": {"one": ["4", 0], "two": ["7", 0]}}
    nodes = workflow("a red bird", **{"7": circle})
    nodes["6"]["inputs"]["positive"] = ["7", 0]
    assert graph.prompts_below(nodes, 2) == ["a red bird"]


@pytest.mark.parametrize(
    ("wanted", "prompts", "missing"),
    [
        ("a horse runs", ["A white HORSE, that runs."], []),
        ("a horse runs", ["a horse"], ["runs"]),
        ("a horse runs", ["the runs of a horse", "a bird"], ["horse", "runs"]),
        ("a horse runs", None, []),
        ("马奔跑", ["马奔跑"], []),
        ("马奔跑", ["一匹白马在草原上奔跑，4k"], []),
        ("马奔跑", ["一匹白马"], ["奔", "跑"]),
        ("a horse runs", ["(((horse:1.2), [runs])), (4k:1.1)"], []),
        ("a horse runs", ["Horse\nRUNS!"], []),
        ("a horse runs", ["a car runs <lora:horse runs:0.8>"], ["horse"]),
        ("a horse runs", ["embedding:horse runs, (embedding:horse:1.2)"], ["horse"]),
        ("a horse runs", ["2 < 3: a horse runs > 1"], []),
        ("Straße", ["STRASSE"], []),
    ],
)
def test_missing_words(graph: Any, wanted: str, prompts: Any, missing: list[str]) -> None:
    assert graph.missing_words(wanted, prompts) == missing


@pytest.mark.parametrize("part", ["<", ":", "<:", "{", "|", "{|", "_", "__a ", "embedding:"])
def test_long_texts_take_no_time(graph: Any, part: str) -> None:
    begun = time.process_time()
    nodes = workflow(part * (90_000 // len(part)))
    graph.missing_words("a horse runs", graph.prompts_below(nodes, 2))
    assert time.process_time() - begun < 1


@pytest.fixture
def missing_in(node_classes: dict[str, Any]) -> Any:
    package = node_classes["LAMP_LoadMotion"].__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.words").missing_in


def queued(text: Any, motion: Any) -> dict[str, Any]:
    nodes = workflow(text)
    nodes["2"]["inputs"]["motion_name"] = motion
    return nodes


def test_the_words_of_the_chosen_motion_are_missed(missing_in: Any) -> None:
    toy = "toy_moves_right.safetensors"  # its captions share: ground moves right
    assert missing_in(queued("a red bird", toy)) == [(toy, ["ground", "moves", "right"])]
    assert missing_in(queued("a car on the ground moves", toy)) == [(toy, ["right"])]
    assert missing_in(queued("a car on the ground moves right", toy)) == []


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        {"1": None, "2": {"class_type": "LAMP_LoadMotion", "inputs": ["1", 0]}},
        queued("a red bird", ["3", 0]),
        queued("a red bird", "gone.safetensors"),
        queued("a red bird", "../toy_moves_right.safetensors\0"),
        queued({}, "toy_moves_right.safetensors"),
    ],
)
def test_a_prompt_that_cannot_be_judged_is_not_complained_about(
    missing_in: Any, prompt: Any
) -> None:
    assert missing_in(prompt) == []
