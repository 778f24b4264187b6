"""A bundled workflow's twin on the toy model: the same canvas, which runs without a download.

The toy base takes the place of checkpoints, an object of the toy world that of the user's picture
or clip, and the motion that comes with the pack that of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lamp.toy.cases import evaluation_cases
from scripts.workflow_format import Graph, Group, Node, Note, Out
from scripts.workflow_on_toy import LEFT_OUT, Toy, toy_settings
from scripts.workflow_parts import NOTE_WIDTH, TOY_ENDING

MOTION = "toy_moves_right.safetensors"
_ENDING = "_toy"
_OBJECT = Node("object", "LAMP_ToyObject", {"number": 0}, "An object that no clip shows")
# Where the outputs of nodes that give way come from, by the type of the node.
_OUTPUTS: Mapping[str, Mapping[str, Out | float]] = {
    "LoadImage": {"IMAGE": Out("object", "first_frame")},
    "LoadVideo": {},
    "GetVideoComponents": {"images": Out("object", "truth"), "fps": 6.0},
}
# By the names of LEFT_OUT, which has the outputs' numbers.
_PASSED = {"LoraLoaderModelOnly": ["MODEL"], "ControlNetApplyAdvanced": ["positive", "negative"]}
_BASE = {"MODEL": "model", "CLIP": "clip", "VAE": "vae"}


def on_toy_model(graph: Graph) -> Graph:
    """The twin of a workflow."""
    nodes = {item.key: item for item in graph.items if isinstance(item, Node)}
    case = evaluation_cases(0, "combination")[0]
    toy = Toy(MOTION, "", "", case.prompt)
    columns = []
    for column in graph.columns:
        groups = [_group(group, nodes, toy) for group in column]
        columns.append([group for group in groups if group.items])
    notes = [item for group in graph.columns[0] for item in group.items][1:]
    own = Note(_text(graph), (NOTE_WIDTH, 340))
    columns[0] = [replace(graph.columns[0][0], items=[own, *notes])]
    columns = [column for column in columns if column]
    return Graph(graph.name + _ENDING, columns, graph.title + TOY_ENDING)


def _text(graph: Graph) -> str:
    return f"""## {graph.title[3:]}, on the toy model

The workflow *{graph.title}* with what comes with the pack: a tiny model that draws coloured \
objects at 32 x 32 pixels, and a motion, "moves right", that eight toy clips taught it.

1. Run. On a CPU it takes some seconds.
2. Try another **number** or **hard** in *LAMP Toy Object*, another seed or **strength**.
3. Then take *{graph.title}*, with a SD 1.x checkpoint, a motion and a picture of yours.

The toy learned nothing but its objects: no prompt draws anything else.
"""


def _group(group: Group, nodes: Mapping[str, Node], toy: Toy) -> Group:
    items: list[Node | Note] = []
    for item in group.items:
        if isinstance(item, Note):
            items.append(item)
        elif item.type in _OUTPUTS or item.type in LEFT_OUT:
            # One object stands for picture and clip.
            if item.type in ("LoadImage", "GetVideoComponents"):
                items.append(_OBJECT)
        elif not _is_caption(item, nodes):
            items.append(_node(item, nodes, toy))
    return replace(group, items=items)


def _has_object(nodes: Mapping[str, Node]) -> bool:
    return any(node.type in ("LoadImage", "GetVideoComponents") for node in nodes.values())


def _is_caption(node: Node, nodes: Mapping[str, Node]) -> bool:
    """A prompt of its own gives way to the object's."""
    return node.type == "PrimitiveStringMultiline" and _has_object(nodes)


def _node(node: Node, nodes: Mapping[str, Node], toy: Toy) -> Node:
    inputs = {name: _source(value, nodes) for name, value in node.inputs.items()}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if node.type == "CheckpointLoaderSimple":
        return Node(node.key, "LAMP_LoadToyBase")
    if node.type in ("CLIPTextEncode", "PrimitiveStringMultiline"):
        name = "text" if node.type == "CLIPTextEncode" else "value"
        if isinstance(inputs[name], str) and inputs[name]:
            caption = Out("object", "prompt") if _has_object(nodes) else toy.caption
            inputs[name] = "" if "egative" in node.title else caption
    for name, value in toy_settings(node.type, inputs, toy).items():
        if not isinstance(inputs.get(name), Out):
            inputs[name] = value
    return replace(node, inputs=inputs)


def _source(value: Any, nodes: Mapping[str, Node]) -> Any:
    """Where an input comes from in the twin; None for what nothing gives any more."""
    while isinstance(value, Out):
        node = nodes[value.node]
        if node.type in _OUTPUTS:
            return _OUTPUTS[node.type][value.name]
        if node.type == "CheckpointLoaderSimple":
            return Out(value.node, _BASE[value.name])
        if _is_caption(node, nodes):
            return Out("object", "prompt")
        if node.type not in LEFT_OUT:
            return value
        slot = _PASSED.get(node.type, []).index(value.name) if node.type in _PASSED else -1
        value = node.inputs.get(LEFT_OUT[node.type].get(slot, ""))
    return value
