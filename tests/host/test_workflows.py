"""The bundled workflows fit a real ComfyUI, and the toy one runs as it is, twice the same."""

from __future__ import annotations

import copy
import io
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from scripts.demo import node_of
from scripts.make_workflows import FOLDER, load_api, titles, workflow_files
from scripts.server.host import PACK_FOLDER, ROOT
from scripts.server.run import PromptRejected, RunResult
from scripts.server.server import ComfyServer
from scripts.workflow_format import CORE_VERSION, input_specs

TITLES = titles()
NAMES = sorted(TITLES)
TOY = "lamp_toy_train_and_generate"
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


def test_the_files_are_what_the_script_makes(server: ComfyServer, infos: dict[str, Any]) -> None:
    version = server.get("/system_stats")["system"]["comfyui_version"]
    if version != CORE_VERSION:
        pytest.skip(f"the files were made with ComfyUI {CORE_VERSION}, this is {version}")
    for name, text in workflow_files(infos).items():
        found = (ROOT / name).read_text(encoding="utf-8")
        assert found == text, f"{name}: run `python -m scripts.make_workflows`"


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_known_to_the_server(infos: dict[str, Any], name: str) -> None:
    for node in load_api(name).values():
        specs = input_specs(infos[node["class_type"]])
        required = infos[node["class_type"]]["input"].get("required", {})
        assert set(required) <= set(node["inputs"]) <= set(specs)
        for key, value in node["inputs"].items():
            kind, options = specs[key]
            brought = (node["class_type"], key) in USER_FILES
            if kind == "COMBO" and not isinstance(value, list) and not brought:
                assert value in options["options"], f"{node['class_type']}.{key}"


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


def frames_of(server: ComfyServer, result: RunResult, prompt: dict[str, Any]) -> NDArray[np.uint8]:
    (file,) = result.files(node_of(prompt, "SaveAnimatedWEBP"))
    film = Image.open(io.BytesIO(server.view(file)))
    return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)])


def test_a_second_run_gives_the_same_video(server: ComfyServer) -> None:
    """Short of a full training, to be quick; every node of the workflow runs."""
    prompt = load_api(TOY)
    prompt[node_of(prompt, "LAMP_Trainer")]["inputs"] |= {"steps": 6}
    prompt[node_of(prompt, "LAMP_KSampler")]["inputs"]["steps"] = 5
    first = server.queue(prompt).check()
    video = frames_of(server, first, prompt)
    assert video.shape[0] == 8
    for shown, words in (
        ("LAMP_ToyScore", "IoU"),
        ("LAMP_MotionInfo", "6 steps"),
        ("LAMP_Trainer", "saved models/lamp_motion/"),
        ("LAMP_TrainingClips", "8 clips"),
    ):
        (text,) = first.outputs[node_of(prompt, shown)]["text"]
        assert words in text

    other = copy.deepcopy(prompt)
    other[node_of(prompt, "LAMP_ToyObject")]["inputs"]["number"] = 1
    between = server.queue(other).check()
    assert node_of(prompt, "LAMP_Trainer") in between.cached
    assert (frames_of(server, between, prompt) != video).any()

    server.free()
    again = server.queue(prompt).check()
    assert node_of(prompt, "LAMP_Trainer") in again.executed
    np.testing.assert_array_equal(frames_of(server, again, prompt), video)


@pytest.mark.parametrize("name", [name for name in NAMES if "toy" in name and name != TOY])
def test_a_twin_runs_on_a_fresh_install(server: ComfyServer, name: str) -> None:
    """As it is, but for fewer steps."""
    prompt = load_api(name)
    for found in prompt.values():
        if "steps" in found["inputs"] and not isinstance(found["inputs"]["steps"], list):
            found["inputs"]["steps"] = 2
    result = server.queue(prompt).check()
    assert len(result.files(node_of(prompt, "SaveVideo"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_toy_workflow_learns_the_motion(server: ComfyServer) -> None:
    prompt = load_api(TOY)
    result = server.queue(prompt, timeout=1700).check()
    (text,) = result.outputs[node_of(prompt, "LAMP_ToyScore")]["text"]
    assert ": followed, IoU" in text
    video = node_of(prompt, "SaveVideo")
    assert len(result.files(video)) == 1
    again = server.queue(prompt).check()
    assert again.executed == [] and again.files(video) == result.files(video)
