"""From a graph in a few words to ComfyUI's two formats: the API prompt and the canvas' file.

What a node's inputs, widgets and outputs are comes from a server's /object_info, never from here.
The same graph and the same server give the same bytes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ObjectInfo = Mapping[str, Mapping[str, Any]]

CORE_VERSION = "0.3.75"
PACK = ("lamp-motion", "0.1.0")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTE = "MarkdownNote"
_NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}

# Measures of the canvas, in pixels: those of the front end's "Nodes 2.0", which needs more room
# than the older way of drawing. At the foot of a pack's node is a line that names the pack.
_WIDTH, _TITLE, _ROW, _WIDGET, _FOOT = 275, 30, 20, 28, 24
_GAP, _INSET, _GROUP_TITLE, _GROUP_GAP = 12, 18, 38, 20


class GraphError(ValueError):
    """A graph that the server's nodes do not allow."""


@dataclass(frozen=True)
class Out:
    """An output of another node, by the names of both."""

    node: str
    name: str


@dataclass(frozen=True)
class Node:
    """`after`: what the seed does after a run. `models`: files that the host may offer to fetch.
    `collapsed`: drawn as its title alone."""

    key: str
    type: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    size: tuple[int, int] = (_WIDTH, 0)
    after: str = "fixed"
    models: Sequence[Mapping[str, str]] = ()
    collapsed: bool = False


@dataclass(frozen=True)
class Note:
    """Markdown on the canvas."""

    text: str
    size: tuple[int, int]
    title: str = "Note"


@dataclass(frozen=True)
class Group:
    """Nodes and notes from top to bottom, under a title."""

    title: str
    colour: str
    items: Sequence[Node | Note]


@dataclass(frozen=True)
class Graph:
    """Columns from left to right, each of groups from top to bottom. `title` names the file of the
    canvas, and so the template in the front end's list, which shows names of files."""

    name: str
    columns: Sequence[Sequence[Group]]
    title: str = ""

    @property
    def items(self) -> list[Node | Note]:
        groups = (group for column in self.columns for group in column)
        return [item for group in groups for item in group.items]

    @property
    def ids(self) -> dict[str, int]:
        """Node key -> number; notes are numbered too, since they stand on the canvas."""
        return {
            item.key: number
            for number, item in enumerate(self.items, start=1)
            if isinstance(item, Node)
        }


# --- what a node has ---------------------------------------------------------------------------


def input_specs(info: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Input name -> (type, options), required ones first, in the server's order."""
    specs = {}
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            options = dict(spec[1]) if len(spec) > 1 else {}
            if isinstance(spec[0], list):
                options["options"] = spec[0]
            specs[name] = (kind, options)
    return specs


def is_widget(spec: tuple[Any, Mapping[str, Any]]) -> bool:
    return spec[0] in WIDGETS and not spec[1].get("forceInput")


def default_of(spec: tuple[Any, Mapping[str, Any]]) -> Any:
    """What the canvas would put into a widget."""
    kind, options = spec
    if "default" in options:
        return options["default"]
    if kind == "COMBO":
        return options["options"][0] if options["options"] else ""
    return {"STRING": "", "BOOLEAN": False}.get(kind, 0)


def has_seed_control(name: str, spec: tuple[Any, Mapping[str, Any]]) -> bool:
    """Whether the canvas adds 'control after generate', also by the old rule of the name."""
    asked = spec[1].get("control_after_generate")
    return spec[0] == "INT" and (name in ("seed", "noise_seed") if asked is None else bool(asked))


def check_value(place: str, value: Any, spec: tuple[Any, Mapping[str, Any]]) -> None:
    """Raise GraphError for a number out of range; files of a user are not known here."""
    low, high = spec[1].get("min"), spec[1].get("max")
    if spec[0] in ("INT", "FLOAT"):
        if (low is not None and value < low) or (high is not None and value > high):
            raise GraphError(f"{place} is {value}, outside {low}..{high}")
        if spec[0] == "INT" and not isinstance(value, int):
            raise GraphError(f"{place} is {value!r}, not a whole number")
    if spec[0] in ("STRING", "COMBO") and not isinstance(value, str):
        raise GraphError(f"{place} is {value!r}, not a text")


# --- the API format ------------------------------------------------------------------------------


def api_prompt(graph: Graph, infos: ObjectInfo) -> dict[str, dict[str, Any]]:
    """The graph as POST /prompt takes it, every widget with its value."""
    nodes = {item.key: item for item in graph.items if isinstance(item, Node)}
    prompt = {}
    for key, number in graph.ids.items():
        node = nodes[key]
        info = _info(node, infos)
        prompt[str(number)] = {
            "class_type": node.type,
            "inputs": dict(_api_inputs(graph, nodes, node, infos)),
            "_meta": {"title": node.title or info["display_name"]},
        }
    return prompt


def _info(node: Node, infos: ObjectInfo) -> Mapping[str, Any]:
    if node.type not in infos:
        raise GraphError(f"the server does not know {node.type}")
    return infos[node.type]


def _api_inputs(
    graph: Graph, nodes: Mapping[str, Node], node: Node, infos: ObjectInfo
) -> Iterator[tuple[str, Any]]:
    info = _info(node, infos)
    specs = input_specs(info)
    unknown = set(node.inputs) - set(specs)
    if unknown:
        raise GraphError(f"{node.type} has no input {sorted(unknown)}")
    for name, spec in specs.items():
        place = f"{graph.name}: {node.key}.{name}"
        value = node.inputs.get(name)
        if isinstance(value, Out):
            yield name, [str(graph.ids[value.node]), _slot(nodes[value.node], value, infos)]
        elif is_widget(spec):
            value = default_of(spec) if value is None else value
            check_value(place, value, spec)
            yield name, value
        elif name in info["input"].get("required", {}):
            raise GraphError(f"{place} needs a link")


def _slot(source: Node, out: Out, infos: ObjectInfo) -> int:
    names = _info(source, infos)["output_name"]
    if out.name not in names:
        raise GraphError(f"{source.type} has no output {out.name}, only {names}")
    return list(names).index(out.name)


# --- the canvas ----------------------------------------------------------------------------------


def canvas(graph: Graph, infos: ObjectInfo) -> dict[str, Any]:
    """The graph as the canvas saves it (schema 0.4), laid out in columns of groups."""
    prompt = api_prompt(graph, infos)
    links = _links(prompt, infos)
    places, groups = _lay_out(graph, infos)
    nodes = []
    for number, item in enumerate(graph.items, start=1):
        if isinstance(item, Note):
            nodes.append(_canvas_note(number, item))
        else:
            nodes.append(_canvas_node(number, item, prompt[str(number)], infos, links))
        left, top, width = places[number]
        nodes[-1]["pos"] = [left, top]
        nodes[-1]["size"][0] = width
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{graph.name}.{PACK[0]}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def socket_names(info: Mapping[str, Any]) -> list[str]:
    """Inputs in the order of the canvas' sockets: those without a widget first."""
    specs = input_specs(info)
    return sorted(specs, key=lambda name: is_widget(specs[name]))


def _links(prompt: Mapping[str, Any], infos: ObjectInfo) -> list[list[Any]]:
    """[number, from node, from slot, to node, to slot, type] for each link of the prompt."""
    links: list[list[Any]] = []
    for number, node in prompt.items():
        for slot, name in enumerate(socket_names(infos[node["class_type"]])):
            value = node["inputs"].get(name)
            if isinstance(value, list):
                source = infos[prompt[value[0]]["class_type"]]
                kind = source["output"][value[1]]
                links.append([len(links) + 1, int(value[0]), value[1], int(number), slot, kind])
    return links


def _canvas_node(
    number: int, node: Node, api: Mapping[str, Any], infos: ObjectInfo, links: list[list[Any]]
) -> dict[str, Any]:
    info = infos[node.type]
    made: dict[str, Any] = {
        "id": number,
        "type": node.type,
        "pos": [0, 0],
        "size": list(node_size(node, infos)),
        "flags": {"collapsed": True} if node.collapsed else {},
        "order": number - 1,
        "mode": 0,
        "inputs": _canvas_inputs(number, info, links),
        "outputs": [
            {"name": name, "type": kind, "links": _leaving(links, number, slot)}
            for slot, (name, kind) in enumerate(
                zip(info["output_name"], info["output"], strict=True)
            )
        ],
        "properties": _properties(node),
        "widgets_values": widget_values(info, api["inputs"], node.after),
    }
    if node.title:
        made["title"] = node.title
    return made


def _canvas_inputs(
    number: int, info: Mapping[str, Any], links: list[list[Any]]
) -> list[dict[str, Any]]:
    arriving = {link[4]: link[0] for link in links if link[3] == number}
    specs, inputs = input_specs(info), []
    for slot, name in enumerate(socket_names(info)):
        entry: dict[str, Any] = {"name": name, "type": specs[name][0]}
        if is_widget(specs[name]):
            entry["widget"] = {"name": name}
        elif name in info["input"].get("optional", {}):
            entry["shape"] = 7  # drawn as a hollow circle
        inputs.append({**entry, "link": arriving.get(slot)})
    return inputs


def _leaving(links: list[list[Any]], number: int, slot: int) -> list[int]:
    return [link[0] for link in links if link[1:3] == [number, slot]]


def widget_values(
    info: Mapping[str, Any], inputs: Mapping[str, Any], after: str = "fixed"
) -> list[Any]:
    """Values in the order of the widgets, with those that the canvas adds by itself."""
    values = []
    for name, spec in input_specs(info).items():
        if not is_widget(spec):
            continue
        value = inputs.get(name)
        values.append(default_of(spec) if isinstance(value, list) else value)
        if has_seed_control(name, spec):
            values.append(after)
        if spec[1].get("image_upload"):
            values.append("image")
    return values


def _properties(node: Node) -> dict[str, Any]:
    name, version = PACK if node.type.startswith("LAMP_") else ("comfy-core", CORE_VERSION)
    properties: dict[str, Any] = {"cnr_id": name, "ver": version, "Node name for S&R": node.type}
    if node.models:
        properties["models"] = [dict(model) for model in node.models]
    return properties


def _canvas_note(number: int, note: Note) -> dict[str, Any]:
    return {
        "id": number,
        "type": NOTE,
        "pos": [0, 0],
        "size": list(note.size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": note.title,
        "properties": {},
        "widgets_values": [note.text],
        **_NOTE_COLOURS,
    }


# --- layout --------------------------------------------------------------------------------------

Place = tuple[int, int, int]  # left, top, width


def node_size(node: Node, infos: ObjectInfo) -> tuple[int, int]:
    """As given, but never smaller than its sockets and the widgets that are shown."""
    info = _info(node, infos)
    specs = input_specs(info)
    sockets = sum(not is_widget(spec) for spec in specs.values())
    hidden = sum(is_widget(spec) and bool(spec[1].get("advanced")) for spec in specs.values())
    widgets = len(widget_values(info, {})) - hidden
    least = _ROW * max(sockets, len(info["output"])) + _WIDGET * widgets + (14 if widgets else 6)
    least += _FOOT * node.type.startswith("LAMP_")
    return node.size[0], max(node.size[1], least)


def _size(item: Node | Note, infos: ObjectInfo) -> tuple[int, int]:
    if isinstance(item, Note):
        return item.size
    width, height = node_size(item, infos)
    return width, 0 if item.collapsed else height


def _lay_out(graph: Graph, infos: ObjectInfo) -> tuple[dict[int, Place], list[dict[str, Any]]]:
    """Places of the items by number, and the groups' frames."""
    places: dict[int, Place] = {}
    groups: list[dict[str, Any]] = []
    left = 0
    for column in graph.columns:
        width = max(_size(item, infos)[0] for group in column for item in group.items)
        top = 0
        for group in column:
            height = _place_group(group, (left, top, width), infos, places)
            box = left, top, width + 2 * _INSET, height
            groups.append(_frame(len(groups) + 1, group, box))
            top += height + _GROUP_GAP
        left += width + 2 * _INSET + _GROUP_GAP
    return places, groups


def _place_group(group: Group, corner: Place, infos: ObjectInfo, places: dict[int, Place]) -> int:
    """Put the group's items into `places`; the height that they take."""
    left, top, width = corner
    bottom = top + _GROUP_TITLE
    for item in group.items:
        places[len(places) + 1] = (left + _INSET, bottom + _TITLE, width)
        bottom += _TITLE + _size(item, infos)[1] + _GAP
    return bottom - _GAP + _INSET - top


def _frame(number: int, group: Group, box: tuple[int, int, int, int]) -> dict[str, Any]:
    return {
        "id": number,
        "title": group.title,
        "bounding": list(box),
        "color": group.colour,
        "font_size": 20,
        "flags": {},
    }
