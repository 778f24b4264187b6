"""Every bundled workflow runs to its end on the real server, on the toy base and in few steps."""

from __future__ import annotations

import io
import json
from typing import Any

import av
import pytest
import requests
from PIL import Image

from lamp.toy.cases import evaluation_cases
from scripts.demo_pictures import write_lossless
from scripts.make_workflows import BLUEPRINT, all_graphs, load_api
from scripts.server.host import PACK_FOLDER
from scripts.server.server import ComfyServer
from scripts.workflow_on_toy import LEFT_OUT, Prompt, Toy, on_toy
from scripts.workflow_toy import TOY_TRAINING
from tests.host.generate_graphs import node

TOY_WORKFLOW = "lamp_toy_train_and_generate"
NAMES = sorted(graph.name for graph in all_graphs() if graph.name != TOY_WORKFLOW)
# Frames of each workflow's video: the clips of the toy have 8 in place of 16.
FRAMES = {"lamp_extend_video": 8 + 2 * 7, "lamp_long_video_windows": 24}
WIDTH = {"lamp_evaluate": 2 * 32 + 8, "lamp_train_and_compare": 3 * 32 + 2 * 8}
WITHOUT_VIDEO = {"lamp_train_motion"}


@pytest.fixture(scope="module")
def toy(server: ComfyServer) -> Toy:
    """The toy's files on the server: a picture, a clip, and a motion of random numbers."""
    case = evaluation_cases(0, "combination")[0]
    folder = server.base / "input"
    Image.fromarray(case.first_frame).save(folder / "toy_picture.png")
    write_lossless(case.frames, folder / "toy_clip.mp4")
    graph = {
        "base": node("LAMP_LoadToyBase"),
        "random": node("TinyMotion", model=["base", 0], family="", broken=False),
        "save": node("LAMP_SaveMotion", motion=["random", 0], filename_prefix="tests/workflows"),
    }
    shown = server.queue(graph).check().outputs["save"]["text"][0]
    return Toy(
        motion=shown.removeprefix("models/lamp_motion/"),
        picture="toy_picture.png",
        clip="toy_clip.mp4",
        caption=case.prompt,
        training={**TOY_TRAINING, "recipe": "paper", "steps": 2, "sample_every": 2},
        steps=2,
    )


def frames_of(server: ComfyServer, prompt: Prompt, outputs: dict[str, Any]) -> list[Any]:
    (key,) = [key for key, found in prompt.items() if found["class_type"] == "SaveVideo"]
    (file,) = outputs[key]["images"]
    with av.open(io.BytesIO(server.view(file))) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


@pytest.mark.parametrize("name", NAMES)
def test_the_workflow_runs_to_its_end(server: ComfyServer, toy: Toy, name: str) -> None:
    prompt = on_toy(load_api(name), toy)
    result = server.queue(prompt).check()
    if name in WITHOUT_VIDEO:
        return
    frames = frames_of(server, prompt, result.outputs)
    assert len(frames) == FRAMES.get(name, 8)
    assert frames[0].shape == (32, WIDTH.get(name, 32), 3)


def test_what_the_toy_leaves_out_is_known(toy: Toy) -> None:
    """All else of a workflow runs: whoever adds a node that is left out must say so here."""
    left = {
        name: {found["class_type"] for found in load_api(name).values()} & set(LEFT_OUT)
        for name in NAMES
    }
    assert {name: kinds for name, kinds in left.items() if kinds} == {
        "lamp_edit_video_sdxl": {"ControlNetLoader", "ControlNetApplyAdvanced"},
        "lamp_evaluate": {"CLIPLoader", "CLIPVisionLoader"},
        "lamp_few_steps_lora": {"LoraLoaderModelOnly"},
    }


def test_the_stages_are_one_training(server: ComfyServer, toy: Toy) -> None:
    """Each goes on from the one before: the motions differ, the log counts on."""
    prompt = on_toy(load_api("lamp_train_and_compare"), toy)
    for found in prompt.values():
        if found["class_type"] == "LAMP_Trainer":
            found["inputs"]["name"] = "tests/stages"
        if found["class_type"] == "LAMP_SaveMotion":
            found["inputs"]["filename_prefix"] = "tests/kept"
    server.queue(prompt).check()
    (run,) = (server.base / "output" / "lamp_training" / "tests").glob("stages_*")
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [1, 2, 3, 4, 5, 6]
    folder = server.base / "models" / "lamp_motion" / "tests"
    files = [*sorted(folder.glob("kept_*")), *folder.glob("stages_*")]
    assert len(files) == 3 and len({file.read_bytes() for file in files}) == 3


# --- the blueprint -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(server: ComfyServer) -> dict[str, Any]:
    """The blueprint as the server's list gives it."""
    try:
        entries = server.get("/global_subgraphs")
    except requests.HTTPError as error:
        if error.response.status_code != 404:
            raise
        pytest.skip("this ComfyUI has no blueprints")
    ours = {key: e for key, e in entries.items() if e["info"]["node_pack"].endswith(PACK_FOLDER)}
    ((key, entry),) = ours.items()
    assert entry["name"] == BLUEPRINT.stem and entry["source"] == "custom_node"
    return json.loads(server.get(f"/global_subgraphs/{key}")["data"])


def test_the_server_hands_out_the_blueprint(served: dict[str, Any]) -> None:
    assert served == json.loads(BLUEPRINT.read_text(encoding="utf-8"))


def test_the_blueprints_links_have_two_ends(served: dict[str, Any]) -> None:
    (definition,) = served["definitions"]["subgraphs"]
    (outer,) = served["nodes"]
    assert outer["type"] == definition["id"]
    nodes = {found["id"]: found for found in definition["nodes"]}
    for link in definition["links"]:
        number, source, target = link["id"], link["origin_id"], link["target_id"]
        if source == definition["inputNode"]["id"]:
            start = definition["inputs"][link["origin_slot"]]
            assert start["linkIds"] == [number]
        else:
            start = nodes[source]["outputs"][link["origin_slot"]]
            assert number in start["links"]
        if target == definition["outputNode"]["id"]:
            end = definition["outputs"][link["target_slot"]]
            assert end["linkIds"] == [number]
        else:
            end = nodes[target]["inputs"][link["target_slot"]]
            assert end["link"] == number
        assert start["type"] == end["type"] == link["type"]
    for side in ("inputs", "outputs"):
        shown = [(entry["name"], entry["type"]) for entry in definition[side]]
        assert [(entry["name"], entry["type"]) for entry in outer[side]] == shown


def expand(served: dict[str, Any]) -> Prompt:
    """The blueprint's inside as an API prompt, a picture and Save Video at its ends."""
    (definition,) = served["definitions"]["subgraphs"]
    links = {link["id"]: link for link in definition["links"]}
    prompt: Prompt = {"picture": node("LoadImage", image="")}
    for found in definition["nodes"]:
        values, inputs = list(found["widgets_values"]), {}
        for entry in found["inputs"]:
            link = links.get(entry["link"])
            if "widget" in entry:
                inputs[entry["name"]] = values.pop(0)
                if entry["name"] == "seed":
                    values.pop(0)
            elif link is not None:
                inner = link["origin_id"] != definition["inputNode"]["id"]
                source = [str(link["origin_id"]), link["origin_slot"]] if inner else ["picture", 0]
                inputs[entry["name"]] = source
        assert values == []
        made = node(found["type"], **inputs)
        prompt[str(found["id"])] = {**made, "_meta": {"title": found.get("title", "")}}
    (end,) = [link for link in links.values() if link["type"] == "VIDEO"]
    source = [str(end["origin_id"]), end["origin_slot"]]
    saved = {"filename_prefix": "blueprint", "format": "auto", "codec": "auto"}
    return {**prompt, "save": node("SaveVideo", video=source, **saved)}


def test_the_blueprint_runs(server: ComfyServer, toy: Toy, served: dict[str, Any]) -> None:
    prompt = on_toy(expand(served), toy)
    result = server.queue(prompt).check()
    assert len(frames_of(server, prompt, result.outputs)) == 8
