"""The bundled subgraph blueprint: served, well formed, and it runs on the toy base."""

from __future__ import annotations

import io
import json
from typing import Any

import av
import pytest
import requests

from scripts.demo import node_of
from scripts.server.host import PACK_FOLDER
from scripts.server.server import ComfyServer
from scripts.workflows import BLUEPRINT
from scripts.workflows.convert import Prompt
from scripts.workflows.toy import FRAMES, on_toy
from tests.host.generate_graphs import node


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
    prompt: Prompt = {"picture": {**node("LoadImage", image=""), "_meta": {"title": ""}}}
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
    save = node("SaveVideo", video=source, **saved)
    return {**prompt, "save": {**save, "_meta": {"title": ""}}}


def test_the_blueprint_runs(server: ComfyServer, served: dict[str, Any]) -> None:
    prompt = on_toy(expand(served))
    prompt[node_of(prompt, "LAMP_KSampler")]["inputs"]["steps"] = 2
    (file,) = server.queue(prompt).check().files("save")
    with av.open(io.BytesIO(server.view(file))) as film:
        assert sum(1 for _ in film.decode(video=0)) == FRAMES
