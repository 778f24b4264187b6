"""The bundled subgraph blueprint: a picture in, a video out, as one node of the node library."""

from __future__ import annotations

import uuid
from typing import Any

from scripts.workflow_format import PACK, Graph, Group, Node, ObjectInfo, Out, canvas
from scripts.workflow_parts import (
    GREEN,
    decode,
    encode,
    first_frame,
    load_motion,
    matched,
    picture,
    sample,
    sd1,
)

NAME = "Image to LAMP video"
_DESCRIPTION = (
    "A LAMP motion moves your picture: choose a SD 1.x checkpoint and a motion, and "
    "describe what happens in the words of the motion."
)
# The canvas' own numbers of the two ends of a subgraph.
_INPUTS, _OUTPUTS = -10, -20
# What stands on the node: its name there, the inner node and its input.
_SHOWN = (
    ("image", "condition", "image"),
    ("prompt", "positive", "text"),
    ("checkpoint", "sd1", "ckpt_name"),
    ("motion", "motion", "motion_name"),
    ("strength", "motion", "strength"),
    ("seed", "sample", "seed"),
    ("width", "condition", "width"),
    ("height", "condition", "height"),
    ("frames", "condition", "frames"),
)
_MADE = (("video", "video", "VIDEO"), ("frames", "matched", "images"))


def inner_graph() -> Graph:
    """What the node does. *Your picture* stands for what will be connected to it."""
    clip = Out("sd1", "CLIP")
    made = {"images": Out("matched", "images"), "fps": 8.0}
    parts = [
        [picture()],
        [sd1("Checkpoint: SD 1.x"), load_motion()],
        [
            encode("positive", "a brown horse runs on the grass", clip, "Prompt"),
            encode("negative", "", clip, "Negative"),
            first_frame(Out("image", "IMAGE")),
        ],
        [
            sample(Out("motion", "model"), after="fixed"),
            decode("frames", Out("sample", "latent"), Out("sd1", "VAE")),
            matched(Out("frames", "IMAGE")),
            Node("video", "CreateVideo", made),
        ],
    ]
    return Graph(NAME, [[Group(NAME, GREEN, part)] for part in parts])


def blueprint(infos: ObjectInfo) -> dict[str, Any]:
    """The file that the node library reads: a canvas with this one node."""
    graph = inner_graph()
    made = canvas(graph, infos)
    outside = graph.ids["image"]
    nodes = {node["id"]: node for node in made["nodes"] if node["id"] != outside}
    links = [_link(*link) for link in made["links"] if link[1] != outside]
    ends = {key: nodes[number] for key, number in graph.ids.items() if number in nodes}
    inputs = [_input(place, *shown, ends, links) for place, shown in enumerate(_SHOWN)]
    outputs = [_output(place, *shown, ends, links) for place, shown in enumerate(_MADE)]
    definition = {
        "id": _uuid("definition"),
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": max(nodes),
            "lastLinkId": max(link["id"] for link in links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": NAME,
        "inputNode": {"id": _INPUTS, "bounding": [120, 100, 120, 40 + 20 * len(inputs)]},
        "outputNode": {"id": _OUTPUTS, "bounding": [1660, 100, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "extra": {},
        "category": "LAMP",
        "description": _DESCRIPTION,
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outer(definition, ends)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [definition]},
        "config": {},
        "extra": {"BlueprintDescription": _DESCRIPTION},
        "version": 0.4,
    }


def _uuid(part: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{part}.{NAME}.{PACK[0]}"))


def _link(
    number: int, source: int, source_slot: int, target: int, target_slot: int, kind: str
) -> dict[str, Any]:
    return {
        "id": number,
        "origin_id": source,
        "origin_slot": source_slot,
        "target_id": target,
        "target_slot": target_slot,
        "type": kind,
    }


def _input(
    place: int,
    name: str,
    key: str,
    field: str,
    ends: dict[str, dict[str, Any]],
    links: list[dict[str, Any]],
) -> dict[str, Any]:
    """An input of the subgraph, and its link to the inner node."""
    slot, entry = _slot(ends[key]["inputs"], field)
    number = max(link["id"] for link in links) + 1
    links.append(_link(number, _INPUTS, place, ends[key]["id"], slot, entry["type"]))
    entry["link"] = number
    return _end(f"input {name}", name, entry["type"], number, (220, 120 + 20 * place))


def _output(
    place: int,
    name: str,
    key: str,
    field: str,
    ends: dict[str, dict[str, Any]],
    links: list[dict[str, Any]],
) -> dict[str, Any]:
    slot, entry = _slot(ends[key]["outputs"], field)
    number = max(link["id"] for link in links) + 1
    links.append(_link(number, ends[key]["id"], slot, _OUTPUTS, place, entry["type"]))
    entry["links"] = [*entry["links"], number]
    return _end(f"output {name}", name, entry["type"], number, (1680, 120 + 20 * place))


def _slot(entries: list[dict[str, Any]], name: str) -> tuple[int, dict[str, Any]]:
    return next((slot, entry) for slot, entry in enumerate(entries) if entry["name"] == name)


def _end(part: str, name: str, kind: str, link: int, place: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": _uuid(part),
        "name": name,
        "type": kind,
        "linkIds": [link],
        "label": name,
        "pos": list(place),
    }


def _outer(definition: dict[str, Any], ends: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The node that stands for the subgraph, with the inner widgets' values."""
    inputs, values = [], []
    for name, key, field in _SHOWN:
        _, entry = _slot(ends[key]["inputs"], field)
        shown: dict[str, Any] = {"label": name, "name": name, "type": entry["type"], "link": None}
        if "widget" in entry:
            shown["widget"] = {"name": name}
            values.append(_widget_value(ends[key], field))
        inputs.append(shown)
    return {
        "id": 1,
        "type": definition["id"],
        "pos": [0, 0],
        "size": [400, 340],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [
            {"name": entry["name"], "type": entry["type"], "links": []}
            for entry in definition["outputs"]
        ],
        "properties": {"cnr_id": PACK[0], "ver": PACK[1]},
        "widgets_values": values,
        "title": NAME,
    }


def _widget_value(node: dict[str, Any], name: str) -> Any:
    # Of these inner nodes only the seed has a widget of the canvas' own after it.
    names = [entry["widget"]["name"] for entry in node["inputs"] if "widget" in entry]
    if "seed" in names:
        names.insert(names.index("seed") + 1, "control after generate")
    return node["widgets_values"][names.index(name)]
