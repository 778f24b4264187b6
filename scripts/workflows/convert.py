"""Conversion between a canvas file and an API prompt.

What inputs, widgets and outputs a node has comes from the server's /object_info.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
Prompt = dict[str, Json]
ObjectInfo = Mapping[str, Mapping[str, Any]]
Spec = tuple[Any, Json]  # type, options

NOTE = "MarkdownNote"
CORE = ("comfy-core", "0.3.75")
PACK = ("lamp-motion", "0.1.0")
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # newer ComfyUI: each choice may have inputs of its own
_HOLLOW = 7  # the shape of an optional socket


# --- what a node has -----------------------------------------------------------------------------


def input_specs(info: Mapping[str, Any]) -> dict[str, Spec]:
    """Input name -> (type, options), required inputs first, in the server's order."""
    specs = {}
    for section in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(section, {}).items():
            options = dict(rest[0]) if rest else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {**options, "options": kind}
            elif kind == DYNAMIC_COMBO:
                choices = [choice["key"] for choice in options["options"]]
                kind, options = "COMBO", {**options, "options": choices}
            specs[name] = (kind, options)
    return specs


def is_widget(spec: Spec) -> bool:
    return spec[0] in _WIDGETS and not spec[1].get("forceInput")


def default_of(spec: Spec) -> Any:
    """The value that the front end gives to a new widget."""
    kind, options = spec
    if "default" in options:
        return options["default"]
    if kind == "COMBO":
        return options["options"][0] if options["options"] else ""
    return {"STRING": "", "BOOLEAN": False}.get(kind, 0)


def _extras(name: str, spec: Spec) -> list[Any]:
    """Values of the widgets that the front end adds after an input's own widget."""
    kind, options = spec
    seed = options.get("control_after_generate")
    if kind == "INT" and (name in ("seed", "noise_seed") if seed is None else seed):
        return ["fixed"]
    return ["image"] if options.get("image_upload") else []


def _sockets(info: Mapping[str, Any]) -> list[str]:
    """Inputs in the order of the canvas: those without a widget first."""
    specs = input_specs(info)
    return sorted(specs, key=lambda name: is_widget(specs[name]))


# --- from the canvas to the API ------------------------------------------------------------------


def to_prompt(canvas: Json, infos: ObjectInfo) -> Prompt:
    """The API prompt of a canvas.

    Raises:
        KeyError: a node or an input is unknown to the server.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in canvas["links"]}
    prompt = {}
    for node in sorted(canvas["nodes"], key=lambda node: node["id"]):
        if node["type"] == NOTE:
            continue
        info = infos[node["type"]]
        inputs = _split_widgets(node, info)[0]
        inputs |= {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry["link"]}
        title = node.get("title") or info["display_name"] or node["type"]
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": {name: inputs[name] for name in input_specs(info) if name in inputs},
            "_meta": {"title": title},
        }
    return prompt


def _split_widgets(node: Json, info: Mapping[str, Any]) -> tuple[Json, dict[str, list[Any]]]:
    """Widget name -> value, and -> values of the widgets that the front end added after it."""
    specs, left = input_specs(info), list(node["widgets_values"])
    values, added = {}, {}
    for name in [entry["name"] for entry in node["inputs"] if "widget" in entry]:
        values[name] = left.pop(0)
        count = len(_extras(name, specs[name]))
        added[name], left = left[:count], left[count:]
    return values, added


# --- from the API to the canvas ------------------------------------------------------------------


def to_canvas(prompt: Prompt, layout: Json, infos: ObjectInfo) -> Json:
    """`layout` with the graph of `prompt`: places, sizes, notes and groups stay as they are.

    Raises:
        KeyError: `layout` lacks a node of the prompt.
    """
    links: list[list[Any]] = []
    for key, node in prompt.items():
        for slot, name in enumerate(_sockets(infos[node["class_type"]])):
            value = node["inputs"].get(name)
            if isinstance(value, list):
                kind = infos[prompt[value[0]]["class_type"]]["output"][value[1]]
                links.append([len(links) + 1, int(value[0]), value[1], int(key), slot, kind])
    old = {node["id"]: node for node in layout["nodes"]}
    nodes = [node for node in layout["nodes"] if node["type"] == NOTE]
    nodes += [_node(old[int(key)], found, infos, links) for key, found in prompt.items()]
    nodes = sorted(nodes, key=lambda node: node["id"])
    nodes = [{**node, "order": order} for order, node in enumerate(nodes)]
    last = {"last_node_id": nodes[-1]["id"], "last_link_id": len(links)}
    return {**layout, **last, "nodes": nodes, "links": links}


def _node(old: Json, api: Json, infos: ObjectInfo, links: list[list[Any]]) -> Json:
    number, kind = old["id"], api["class_type"]
    info = infos[kind]
    pack, version = PACK if kind.startswith("LAMP_") else CORE
    outputs = enumerate(zip(info["output_name"], info["output"], strict=True))
    properties = {"cnr_id": pack, "ver": version, "Node name for S&R": kind}
    if old["type"] == kind and "models" in old["properties"]:
        properties["models"] = old["properties"]["models"]
    return {
        **old,
        "type": kind,
        "inputs": _inputs(info, {link[4]: link[0] for link in links if link[3] == number}),
        "outputs": [
            {"name": name, "type": of, "links": [x[0] for x in links if x[1:3] == [number, slot]]}
            for slot, (name, of) in outputs
        ],
        "properties": properties,
        "widgets_values": _widget_values(api["inputs"], old, info),
    }


def _inputs(info: Mapping[str, Any], arriving: Mapping[int, int]) -> list[Json]:
    specs, inputs = input_specs(info), []
    for slot, name in enumerate(_sockets(info)):
        entry: Json = {"name": name, "type": specs[name][0]}
        if is_widget(specs[name]):
            entry["widget"] = {"name": name}
        elif name in info["input"].get("optional", {}):
            entry["shape"] = _HOLLOW
        inputs.append({**entry, "link": arriving.get(slot)})
    return inputs


def _widget_values(inputs: Json, old: Json, info: Mapping[str, Any]) -> list[Any]:
    """Values in the order of the widgets; what the front end added to the old node is kept."""
    added = _split_widgets(old, info)[1] if old["type"] == info["name"] else {}
    values = []
    for name, spec in input_specs(info).items():
        if is_widget(spec):
            value = inputs.get(name)
            missing = value is None or isinstance(value, list)
            values += [default_of(spec) if missing else value]
            values += added.get(name) or _extras(name, spec)
    return values
