"""The bundled workflows fit a real ComfyUI, and the toy one runs as it is, twice the same."""

from __future__ import annotations

import copy
import io
import json
from typing import Any
from urllib.parse import quote

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.demo import node_of
from scripts.server.host import PACK_FOLDER
from scripts.server.run import PromptRejected, RunResult
from scripts.server.server import ComfyServer
from scripts.workflows import BLUEPRINT, FOLDER, ORIGINALS, TITLES, TWINS, load_api, load_canvas
from scripts.workflows.__main__ import refreshed
from scripts.workflows.convert import CORE, NOTE, input_specs, is_widget
from scripts.workflows.toy import SIDE, on_toy

NAMES = sorted(TITLES)
TOY = "lamp_toy_train_and_generate"
# Frames and width of each twin's video, where they are not those of one toy clip: 8 and 64.
FRAMES = {"lamp_extend_video_toy": 8 + 2 * 7, "lamp_long_video_windows_toy": 24}
WIDTH = {"lamp_evaluate_toy": 2 * SIDE + 8}
Prompt = dict[str, dict[str, Any]]
# What the user has to bring: which files there are is not for us to say.
USER_FILES = {
    ("CheckpointLoaderSimple", "ckpt_name"),
    ("LAMP_LoadMotion", "motion_name"),
    ("LAMP_TrainingClips", "folder"),
    ("LoadImage", "image"),
    ("LoadVideo", "file"),
    ("ControlNetLoader", "control_net_name"),
    ("LoraLoaderModelOnly", "lora_name"),
    ("CLIPLoader", "clip_name"),
    ("CLIPVisionLoader", "clip_name"),
}


@pytest.fixture(scope="module")
def infos(server: ComfyServer) -> dict[str, Any]:
    return server.object_info()


def test_a_refresh_changes_nothing(server: ComfyServer, infos: dict[str, Any]) -> None:
    version = server.get("/system_stats")["system"]["comfyui_version"]
    if version != CORE[1]:
        pytest.skip(f"the files were saved for ComfyUI {CORE[1]}, this is {version}")
    for path, text in refreshed(infos).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path}: run `python -m scripts.workflows`"
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_known_to_the_server(infos: dict[str, Any], name: str) -> None:
    prompt = load_api(name)
    for node in prompt.values():
        specs = input_specs(infos[node["class_type"]])
        required = infos[node["class_type"]]["input"].get("required", {})
        assert set(required) <= set(node["inputs"]) <= set(specs)
        for key, value in node["inputs"].items():
            place = f"{node['class_type']}.{key}"
            kind, options = specs[key]
            if isinstance(value, list):
                source = infos[prompt[value[0]]["class_type"]]
                assert kind in (source["output"][value[1]], "*"), place
            elif (node["class_type"], key) not in USER_FILES:
                check_value(place, value, kind, options)


def check_value(place: str, value: Any, kind: Any, options: dict[str, Any]) -> None:
    if kind == "COMBO":
        assert value in options["options"], place
    elif kind in ("INT", "FLOAT"):
        assert type(value) in ((int,) if kind == "INT" else (int, float)), place
        assert options.get("min", value) <= value <= options.get("max", value), place
    else:
        assert type(value) is {"STRING": str, "BOOLEAN": bool}[kind], place


def canvas_nodes() -> list[tuple[str, dict[str, Any]]]:
    """The nodes of every canvas file, and those inside the blueprint."""
    (inside,) = json.loads(BLUEPRINT.read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    canvases = {name: load_canvas(name) for name in NAMES} | {BLUEPRINT.stem: inside}
    nodes = [(name, node) for name, canvas in canvases.items() for node in canvas["nodes"]]
    return [(name, node) for name, node in nodes if node["type"] != NOTE]


def test_the_canvas_has_the_servers_sockets_and_widgets(infos: dict[str, Any]) -> None:
    """The front end reads widgets and outputs by their place: newer servers may only append."""
    for name, node in canvas_nodes():
        place, info = f"{name}: {node['type']}", infos[node["type"]]
        specs = input_specs(info)
        for entry in node["inputs"]:
            spec = specs[entry["name"]]
            assert (entry["type"], "widget" in entry) == (spec[0], is_widget(spec)), place
        widgets = [entry["name"] for entry in node["inputs"] if "widget" in entry]
        assert widgets == [key for key in specs if is_widget(specs[key])][: len(widgets)], place
        values = [value for value in node["widgets_values"] if value not in ("fixed", "randomize")]
        assert len(values) == len(widgets) + (node["type"] == "LoadImage"), place
        outputs = [(entry["name"], entry["type"]) for entry in node["outputs"]]
        known = list(zip(info["output_name"], info["output"], strict=True))
        assert outputs == known[: len(outputs)], place


@pytest.mark.parametrize("name", [name for name in NAMES if "toy" not in name])
def test_only_the_users_files_are_missing(server: ComfyServer, name: str) -> None:
    with pytest.raises(PromptRejected) as caught:
        server.queue(load_api(name))
    for found in caught.value.node_errors.values():
        for error in found["errors"]:
            place = found["class_type"], error.get("extra_info", {}).get("input_name")
            named = {key for kind, key in USER_FILES if kind == found["class_type"]}
            assert place in USER_FILES or any(key in error["details"] for key in named), error


def test_the_template_browser_lists_them(server: ComfyServer) -> None:
    assert sorted(server.get("/workflow_templates")[PACK_FOLDER]) == sorted(TITLES.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_template_browser_has_file_and_picture(server: ComfyServer, name: str) -> None:
    for ending, head in ((".json", b"{"), (".jpg", b"\xff\xd8\xff")):
        file = f"{TITLES[name]}{ending}"
        found = server.fetch(f"/api/workflow_templates/{PACK_FOLDER}/{quote(file)}")
        assert found.startswith(head) and found == (FOLDER / file).read_bytes()


def in_few_steps(prompt: Prompt) -> Prompt:
    for found in prompt.values():
        if "steps" in found["inputs"] and not isinstance(found["inputs"]["steps"], list):
            found["inputs"]["steps"] = 2
    return prompt


def video_of(server: ComfyServer, result: RunResult, prompt: Prompt) -> NDArray[np.uint8]:
    (file,) = result.files(node_of(prompt, "SaveVideo"))
    with av.open(io.BytesIO(server.view(file))) as film:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)])


def test_a_second_run_gives_the_same_video(server: ComfyServer) -> None:
    """Short of a full training, to be quick; every node of the workflow runs."""
    prompt = load_api(TOY)
    fewer = {"steps": 6, "sample_every": 0, "keep_motions": 0}
    prompt[node_of(prompt, "LAMP_Trainer")]["inputs"] |= fewer
    prompt[node_of(prompt, "LAMP_KSampler")]["inputs"]["steps"] = 5
    first = server.queue(prompt).check()
    video = video_of(server, first, prompt)
    assert video.shape[0] == 8
    for shown, words in (
        ("LAMP_ToyScore", "IoU"),
        ("LAMP_Trainer", "saved models/lamp_motion/"),
        ("LAMP_TrainingClips", "8 clips"),
    ):
        (text,) = first.outputs[node_of(prompt, shown)]["text"]
        assert words in text

    other = copy.deepcopy(prompt)
    other[node_of(prompt, "LAMP_ToyObject")]["inputs"]["number"] = 1
    between = server.queue(other).check()
    assert node_of(prompt, "LAMP_Trainer") in between.cached
    assert (video_of(server, between, prompt) != video).any()

    server.free()
    again = server.queue(prompt).check()
    assert node_of(prompt, "LAMP_Trainer") in again.executed
    np.testing.assert_array_equal(video_of(server, again, prompt), video)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_runs_on_a_fresh_install(server: ComfyServer, name: str) -> None:
    """As it is, but for fewer steps."""
    prompt = in_few_steps(load_api(name))
    video = video_of(server, server.queue(prompt).check(), prompt)
    frames, width = FRAMES.get(name, 8), WIDTH.get(name, SIDE)
    assert video.shape == (frames, SIDE, width, 3)


@pytest.mark.parametrize("name", sorted(set(ORIGINALS) - set(TWINS.values()) - {TOY}))
def test_a_training_workflow_runs_on_the_toy(server: ComfyServer, name: str) -> None:
    """Those without a twin. The stages of a training go on from each other: the log counts on."""
    prompt = in_few_steps(on_toy(load_api(name)))
    trainers = [n["inputs"] for n in prompt.values() if n["class_type"] == "LAMP_Trainer"]
    for number, inputs in enumerate(trainers, start=1):
        # The rate of recipe `fast` falls to zero: no stage could go on from it.
        inputs |= {"recipe": "paper", "name": f"tests/{name}", "steps": 2 * number}
        if number > 1:  # samples take longer than the steps
            inputs["sample_every"] = 0
    for found in prompt.values():
        if found["class_type"] == "LAMP_SaveMotion":
            found["inputs"]["filename_prefix"] = f"tests/{name}_kept"
    result = server.queue(prompt).check()

    (run,) = (server.base / "output" / "lamp_training" / "tests").glob(f"{name}_*")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 2 * len(trainers) + 1))
    motions = (server.base / "models" / "lamp_motion" / "tests").glob(f"{name}_*")
    assert len({file.read_bytes() for file in motions}) == len(trainers)
    if len(trainers) > 1:
        assert video_of(server, result, prompt).shape == (8, SIDE, 3 * SIDE + 2 * 8, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_toy_workflow_learns_the_motion(server: ComfyServer) -> None:
    """In a third of its steps with one clip each, which is enough; `make demo` runs it all."""
    prompt = load_api(TOY)
    trainer = prompt[node_of(prompt, "LAMP_Trainer")]["inputs"]
    trainer |= {"steps": trainer["steps"] // 3, "batch": 1}
    result = server.queue(prompt, timeout=1700).check()
    (text,) = result.outputs[node_of(prompt, "LAMP_ToyScore")]["text"]
    assert ": followed, IoU" in text
    video = node_of(prompt, "SaveVideo")
    assert len(result.files(video)) == 1
    again = server.queue(prompt).check()
    assert again.executed == [] and again.files(video) == result.files(video)
