"""ComfyUI starts with the pack in custom_nodes, and the harness reports what happens."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from scripts.server.host import PACK_FOLDER
from scripts.server.server import ComfyServer, PromptRejected


def picture(color: int = 0xFF8000) -> dict[str, dict[str, Any]]:
    empty = {"width": 24, "height": 16, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }


@pytest.fixture(scope="session")
def our_nodes(server: ComfyServer) -> dict[str, Any]:
    module = f"custom_nodes.{PACK_FOLDER}"
    ours = {k: v for k, v in server.object_info().items() if v["python_module"] == module}
    assert ours, "the server knows none of the pack's nodes"
    return ours


def test_the_pack_loads_without_warnings(server: ComfyServer) -> None:
    log = server.log_text()
    assert PACK_FOLDER in log
    ours = [line for line in log.splitlines() if PACK_FOLDER in line]
    complaints = ("IMPORT FAILED", "Cannot import", "Error while calling", "Skip ")
    assert [line for line in ours if any(c in line for c in complaints)] == []
    assert "Unable to parse pyproject.toml" not in log


def test_nodes_are_listed_with_our_prefix(our_nodes: dict[str, Any]) -> None:
    assert [name for name in our_nodes if not name.startswith("LAMP_")] == []
    assert [n for n, v in our_nodes.items() if v["category"].split("/")[0] != "LAMP"] == []
    assert [n for n, v in our_nodes.items() if not v["description"]] == []


def test_every_input_and_output_has_a_tooltip(our_nodes: dict[str, Any]) -> None:
    silent = []
    for name, info in our_nodes.items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        silent += [
            f"{name} input {key}"
            for key, spec in inputs.items()
            if not (len(spec) > 1 and spec[1].get("tooltip"))
        ]
        tips = info.get("output_tooltips") or [None] * len(info["output"])
        silent += [
            f"{name} output {key}"
            for key, tip in zip(info["output_name"], tips, strict=True)
            if not tip
        ]
    assert silent == []


def test_a_graph_runs_and_its_file_can_be_fetched(server: ComfyServer) -> None:
    seen = []
    result = server.queue(picture(), on_event=lambda event: seen.append(event["type"])).check()
    assert result.executed == ["1", "2"]
    assert "execution_success" in seen
    (file,) = result.files("2")
    image = Image.open(io.BytesIO(server.view(file)))
    assert image.size == (24, 16)
    assert image.getpixel((0, 0)) == (255, 128, 0)


def test_an_unchanged_graph_is_answered_from_the_cache(server: ComfyServer) -> None:
    first = server.queue(picture(0x102030)).check()
    again = server.queue(picture(0x102030)).check()
    assert sorted(again.cached) == ["1", "2"] and again.executed == []
    assert again.files() == first.files()


def test_an_invalid_prompt_is_rejected_with_node_and_input(server: ComfyServer) -> None:
    prompt = picture()
    prompt["1"]["inputs"]["width"] = 0
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\): .*width"):
        server.queue(prompt)


def test_an_error_in_a_node_is_named(server: ComfyServer) -> None:
    prompt = picture()
    prompt["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    prompt["2"]["inputs"]["filename_prefix"] = "../../outside"
    result = server.queue(prompt)
    assert result.status == "error" and result.error is not None
    assert (result.error.node_id, result.error.node_type) == ("2", "SaveImage")
    with pytest.raises(RuntimeError, match="SaveImage"):
        result.check()


def test_an_image_can_be_uploaded(server: ComfyServer, tmp_path: Any) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "small.png")
    name = server.upload_image(tmp_path / "small.png")
    result = server.queue(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
    ).check()
    assert len(result.files("2")) == 1


def test_the_motion_folder_is_a_model_folder(server: ComfyServer) -> None:
    assert "lamp_motion" in server.get("/models")
    assert isinstance(server.models("lamp_motion"), list)
