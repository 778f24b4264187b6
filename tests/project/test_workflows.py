"""The bundled workflows agree with their API twins and read well on the canvas."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.toy.runs import MOTION_GUIDANCE, Recipe
from lamp.toy.worlds import evaluation_cases
from scripts.server.host import ROOT
from scripts.workflows import API, FOLDER, ORIGINALS, TITLES, TWINS, load_api, load_canvas
from scripts.workflows.convert import NOTE, PACK, to_canvas, to_prompt
from scripts.workflows.toy import CAPTION, KIND, LEFT_OUT, on_toy

NAMES = sorted(TITLES)
TOY = "lamp_toy_train_and_generate"


def needs_nothing() -> list[str]:
    """The workflows that a fresh install runs."""
    return [name for name in NAMES if "toy" in name]


CHINESE = "[\u4e00-\u9fff]"
AFTER = ("fixed", "randomize", "increment", "decrement")


def real_nodes(name: str) -> dict[str, dict[str, Any]]:
    return {str(node["id"]): node for node in load_canvas(name)["nodes"] if node["type"] != NOTE}


def widget_inputs(node: dict[str, Any]) -> dict[str, Any]:
    """Widget name -> value, without the values of widgets that only the canvas has."""
    values, found = list(node["widgets_values"]), {}
    for entry in node["inputs"]:
        if "widget" in entry:
            found[entry["name"]] = values.pop(0)
            if values and entry["name"] in ("seed", "noise_seed") and values[0] in AFTER:
                values.pop(0)
            if values and node["type"] == "LoadImage":
                values.pop(0)
    assert not values, f"{node['type']} has values without a widget"
    return found


def test_there_is_a_file_pair_for_every_graph() -> None:
    assert sorted(TITLES.values()) == sorted(path.stem for path in FOLDER.glob("*.json"))
    assert NAMES == sorted(path.stem for path in API.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_have_the_same_nodes(name: str) -> None:
    nodes, prompt = real_nodes(name), load_api(name)
    assert {k: v["type"] for k, v in nodes.items()} == {
        k: v["class_type"] for k, v in prompt.items()
    }
    for number, node in nodes.items():
        assert (
            node.get("title", prompt[number]["_meta"]["title"])
            == (prompt[number]["_meta"]["title"])
        )


@pytest.mark.parametrize("name", NAMES)
def test_both_formats_have_the_same_links_and_values(name: str) -> None:
    links = {link[0]: link for link in load_canvas(name)["links"]}
    for number, node in real_nodes(name).items():
        inputs = widget_inputs(node)
        for slot, entry in enumerate(node["inputs"]):
            if entry["link"] is not None:
                _, source, source_slot, target, target_slot, _ = links[entry["link"]]
                assert (target, target_slot) == (node["id"], slot)
                inputs[entry["name"]] = [str(source), source_slot]
        assert inputs == load_api(name)[number]["inputs"]


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_unique_and_links_have_two_ends(name: str) -> None:
    graph = load_canvas(name)
    ids = [node["id"] for node in graph["nodes"]]
    links = [link[0] for link in graph["links"]]
    assert len(set(ids)) == len(ids) and max(ids) == graph["last_node_id"]
    assert len(set(links)) == len(links) and max(links) == graph["last_link_id"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    arriving = [e["link"] for node in graph["nodes"] for e in node["inputs"] if e["link"]]
    assert sorted(arriving) == sorted(links)
    for number, source, slot, _, _, kind in graph["links"]:
        output = nodes[source]["outputs"][slot]
        assert number in output["links"] and output["type"] == kind


@pytest.mark.parametrize("name", NAMES)
def test_only_the_host_and_this_pack_are_needed(name: str) -> None:
    for node in real_nodes(name).values():
        ours = node["type"].startswith("LAMP_")
        assert node["properties"]["cnr_id"] == ("lamp-motion" if ours else "comfy-core")
        assert node["properties"]["Node name for S&R"] == node["type"]
        if ours:
            assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == PACK


def test_the_version_is_the_packs() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'name = "{PACK[0]}"' in project and f'version = "{PACK[1]}"' in project


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_and_everything_stands_in_a_group(name: str) -> None:
    graph = load_canvas(name)
    boxes = {}
    for node in graph["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        height = 0 if node.get("flags", {}).get("collapsed") else height
        boxes[node["id"]] = (left, top - 30, left + width, top + height)  # 30: the title
    for one, other in itertools.combinations(boxes, 2):
        assert not _overlap(boxes[one], boxes[other]), f"nodes {one} and {other}"
    frames = [group["bounding"] for group in graph["groups"]]
    frames = [(x, y, x + width, y + height) for x, y, width, height in frames]
    for box in boxes.values():
        assert sum(_inside(box, frame) for frame in frames) == 1
    for one, other in itertools.combinations(frames, 2):
        assert not _overlap(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_collapsed_note_covers_nothing_when_it_is_opened(name: str) -> None:
    nodes = load_canvas(name)["nodes"]
    for note in nodes:
        if note["type"] != NOTE or not note["flags"].get("collapsed"):
            continue
        (left, top), (width, height) = note["pos"], note["size"]
        box = (left, top - 30, left + width, top + height)
        for other in nodes:
            (x, y), (wide, high) = other["pos"], other["size"]
            high = 0 if other["flags"].get("collapsed") else high
            assert other is note or not _overlap(box, (x, y - 30, x + wide, y + high))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_in_titles_are_those_of_the_node(name: str) -> None:
    for number, node in load_api(name).items():
        title, inputs = node["_meta"]["title"], node["inputs"]
        if size := re.fullmatch(r"(\d+) x (\d+)", title):
            assert [int(side) for side in size.groups()] == [inputs["width"], inputs["height"]]
        if node["class_type"] == "LAMP_Trainer" and (steps := re.search(r"(\d+) steps", title)):
            assert int(steps[1]) == inputs["steps"]
        if frames := re.search(r"first (\d+) frames", title):
            assert int(frames[1]) == inputs["length"], number


@pytest.mark.parametrize("name", NAMES)
def test_titles_of_collapsed_nodes_are_shown_whole(name: str) -> None:
    """The canvas cuts them at 20 characters."""
    titles = {number: node["_meta"]["title"] for number, node in load_api(name).items()}
    for number, node in real_nodes(name).items():
        assert not node["flags"].get("collapsed") or len(titles[number]) <= 20, titles[number]


@pytest.mark.parametrize("twin", sorted(TWINS))
def test_every_node_of_a_toy_twin_serves_its_result(twin: str) -> None:
    prompt = load_api(twin)
    used = {
        value[0]
        for node in prompt.values()
        for value in node["inputs"].values()
        if isinstance(value, list)
    }
    for number, node in prompt.items():
        ends = node["class_type"].startswith(("Save", "Preview")) or "Score" in node["class_type"]
        assert number in used or ends or node["class_type"] == "LAMP_VideoMetrics", number


# The front end fits all nodes, with a margin, into 3/4 of the window when it opens a workflow, and
# draws no text below a zoom of 0.57.
READABLE = 0.6
WINDOW = 1366, 768
MARGIN = 20


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_is_small_enough_to_be_read_when_it_opens(name: str) -> None:
    """Some front ends count a collapsed node at its full size."""
    nodes = load_canvas(name)["nodes"]
    for axis in (0, 1):
        low = min(node["pos"][axis] for node in nodes)
        high = max(node["pos"][axis] + node["size"][axis] for node in nodes)
        assert WINDOW[axis] * 0.75 / (high - low + MARGIN) >= READABLE


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(needs_nothing())))
def test_every_workflow_that_needs_files_leads_to_one_that_runs_as_it_is(name: str) -> None:
    notes = [node for node in load_canvas(name)["nodes"] if node["type"] == NOTE]
    text = "\n".join(note["widgets_values"][0] for note in notes)
    assert any(TITLES[other] in text for other in needs_nothing())


def test_titles_are_plain_in_an_address_and_in_every_file_system() -> None:
    for title in TITLES.values():
        assert re.fullmatch(r"\d\d [A-Za-z0-9 ,-]+", title) and len(title) < 60


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart


def _inside(box: tuple[int, ...], frame: tuple[int, ...]) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


@pytest.mark.parametrize("name", NAMES)
def test_a_note_tells_what_to_do(name: str) -> None:
    notes = [node for node in load_canvas(name)["nodes"] if node["type"] == NOTE]
    text = "\n".join(note["widgets_values"][0] for note in notes)
    for node in real_nodes(name).values():
        for model in node["properties"].get("models", []):
            assert model["name"] in text and f"models/{model['directory']}" in text


@pytest.mark.parametrize("name", NAMES)
def test_notes_and_groups_are_in_english_and_chinese(name: str) -> None:
    graph = load_canvas(name)
    notes = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == NOTE]
    assert {bool(re.search(CHINESE, note)) for note in notes} == {False, True}
    for group in graph["groups"]:
        assert re.search("[A-Za-z0-9]", group["title"]) and re.search(CHINESE, group["title"])
    # Both languages name the same files.
    files = re.compile(r"`([\w.-]+\.safetensors)`")
    named = [set(files.findall(note)) for note in notes if len(files.findall(note)) > 1]
    assert all(each == named[0] for each in named)


@pytest.mark.parametrize("twin", TWINS)
def test_the_thumbnail_of_a_toy_twin_differs(twin: str) -> None:
    files = (FOLDER / f"{TITLES[name]}.jpg" for name in (twin, TWINS[twin]))
    assert len({file.read_bytes() for file in files}) == 2


@pytest.mark.parametrize("picture", sorted(FOLDER.glob("*.jpg")), ids=lambda path: path.stem)
def test_a_thumbnail_belongs_to_a_workflow_and_is_small(picture: Path) -> None:
    assert picture.stem in TITLES.values()
    assert picture.stat().st_size < 300_000


def test_the_toy_workflow_uses_the_measured_settings() -> None:
    """But for more steps: here all depends on one object."""
    recipe = Recipe()
    nodes = {node["class_type"]: node["inputs"] for node in load_api(TOY).values()}
    trainer, sampler = nodes["LAMP_Trainer"], nodes["LAMP_KSampler"]
    assert trainer["recipe"] == "fast" and trainer["steps"] >= recipe.steps
    assert (trainer["batch"], trainer["accumulate"]) == (recipe.clips_per_step, 1)
    assert [sampler[k] for k in ("steps", "cfg", "adain")] == [
        recipe.sample_steps,
        recipe.guidance,
        recipe.adain,
    ]


@pytest.mark.parametrize("name", TITLES)
def test_workflows_guide_the_motion_as_measured(name: str) -> None:
    """Except the one that measures a motion with the paper's metrics, as the paper sampled."""
    scale = 1.0 if TWINS.get(name, name) == "lamp_evaluate" else MOTION_GUIDANCE
    loaders = [n for n in load_api(name).values() if n["class_type"] == "LAMP_LoadMotion"]
    assert all(node["inputs"]["motion_guidance"] == scale for node in loaders)


def test_the_template_browser_finds_only_canvas_files() -> None:
    for path in FOLDER.glob("*.json"):
        assert {"nodes", "links", "groups", "version"} <= set(json.loads(path.read_text("utf-8")))


# --- the conversion ------------------------------------------------------------------------------

INFOS: dict[str, Any] = {
    "Source": {
        "name": "Source",
        "display_name": "A source",
        "input": {
            "required": {"seed": ["INT", {"default": 3}], "shape": ["COMBO", {"default": "a"}]}
        },
        "output": ["IMAGE"],
        "output_name": ["picture"],
    },
    "Sink": {
        "name": "Sink",
        "display_name": "A sink",
        "input": {
            "required": {"mode": [["x", "y"]], "image": ["IMAGE", {}]},
            "optional": {"text": ["STRING", {"forceInput": True}]},
        },
        "output": [],
        "output_name": [],
    },
}


def older_canvas() -> dict[str, Any]:
    """Two linked nodes, saved when Source had no `shape`."""
    seed = {"name": "seed", "type": "INT", "widget": {"name": "seed"}, "link": None}
    image = {"name": "image", "type": "IMAGE", "link": 4}
    mode = {"name": "mode", "type": "COMBO", "widget": {"name": "mode"}, "link": None}
    shared = {"properties": {}, "flags": {}, "size": [100, 50]}
    source = {"id": 7, "type": "Source", "pos": [1, 2], "inputs": [seed]} | shared
    sink = {"id": 9, "type": "Sink", "pos": [5, 6], "inputs": [image, mode], "title": "End"}
    source["widgets_values"], sink["widgets_values"] = [5, "randomize"], ["y"]
    return {"nodes": [source, sink | shared], "links": [[4, 7, 0, 9, 0, "IMAGE"]], "version": 0.4}


def test_a_canvas_becomes_a_prompt() -> None:
    assert to_prompt(older_canvas(), INFOS) == {
        "7": {"class_type": "Source", "inputs": {"seed": 5}, "_meta": {"title": "A source"}},
        "9": {
            "class_type": "Sink",
            "inputs": {"mode": "y", "image": ["7", 0]},
            "_meta": {"title": "End"},
        },
    }


def test_a_refresh_adds_new_inputs_and_keeps_the_rest() -> None:
    canvas = older_canvas()
    made = to_canvas(to_prompt(canvas, INFOS), canvas, INFOS)
    source, sink = made["nodes"]
    assert source["widgets_values"] == [5, "randomize", "a"]
    assert [entry["name"] for entry in source["inputs"]] == ["seed", "shape"]
    assert [entry["name"] for entry in sink["inputs"]] == ["image", "text", "mode"]
    assert (sink["pos"], sink["title"], sink["widgets_values"]) == ([5, 6], "End", ["y"])
    assert made["links"] == [[1, 7, 0, 9, 0, "IMAGE"]]
    assert source["outputs"][0]["links"] == [sink["inputs"][0]["link"]] == [1]


@pytest.mark.parametrize("part", ["node", "input"])
def test_what_the_server_does_not_know_is_refused(part: str) -> None:
    canvas = older_canvas()
    if part == "node":
        canvas["nodes"][0]["type"] = "Nothing"
    else:
        canvas["nodes"][0]["inputs"][0]["name"] = "Nothing"
    with pytest.raises(KeyError, match="Nothing"):
        to_prompt(canvas, INFOS)


@pytest.mark.parametrize("twin", sorted(TWINS))
def test_a_twin_has_the_graph_of_its_original(twin: str) -> None:
    made = on_toy(load_api(TWINS[twin]))
    bare = [
        {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}
        for prompt in (made, load_api(twin))
    ]
    assert bare[0] == bare[1]
    # Nothing is left that a fresh install lacks.
    kinds = {node["class_type"] for node in made.values()}
    assert not kinds & {"CheckpointLoaderSimple", "LoadImage", "LoadVideo", *LEFT_OUT}


def test_the_twins_caption_names_the_toy_object() -> None:
    assert evaluation_cases(0, "combination", KIND)[0].prompt == CAPTION


def test_what_a_twin_leaves_out_is_known() -> None:
    """All other nodes of a workflow run in its twin: name the new one here, or replace it."""
    left = {
        name: {node["class_type"] for node in load_api(name).values()} & set(LEFT_OUT)
        for name in ORIGINALS
    }
    assert {name: kinds for name, kinds in left.items() if kinds} == {
        "lamp_edit_video_sdxl": {
            "ControlNetLoader",
            "ControlNetApplyAdvanced",
            "GetVideoComponents",
        },
        "lamp_evaluate": {"CLIPLoader"},  # Load LAMP Toy CLIP replaces both loaders
        "lamp_few_steps_lora": {"LoraLoaderModelOnly"},
        "lamp_train_motion": {"LAMP_TrainingPreset"},
    }
