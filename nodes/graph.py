"""What the graph of a prompt says: the prompts of the samplers behind a node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..lamp.motion_file.config import FILLERS

_TEXTS = ("text", "text_g", "text_l", "prompt", "value", "string")
"""Inputs in which text encoders and text nodes hold their text."""
_POSITIVE = ("positive", "conditioning")
# Inputs that pass on neither the prompt of a sampler nor its MODEL, though those of a picture may
# lie behind them.
_OTHER = re.compile("negative|clip|model|vae|image|pixels|latent|samples|mask|video")
_INVERSION = "LAMP_DDIMInversion"
# Not words: tags of LoRAs, and names of embeddings.
_TAGS = re.compile(r"<[^<>:\s]*:[^<>]*>|embedding:\S+", re.IGNORECASE)
_WILDCARD = re.compile(r"__[^\s_][^\n]*?__|\{[^{}|]*\|[^{}]*\}")
# Chinese and Japanese have no spaces between words, so each character counts.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

Graph = Mapping[str, Mapping[str, Any]]


def prompts_below(graph: Graph | None, node_id: Any) -> list[str] | None:
    """The texts that lead to the positive input of each sampler that samples with the MODEL of a
    node, one per line.

    Args:
        graph: the prompt as the host sends it to its nodes.

    Returns:
        None if no sampler is found, or one whose text is made by a node that runs.
    """
    graph, found = graph or {}, []
    behind = {str(node_id), *_behind(graph, str(node_id))}
    for node in graph.values():
        inputs = node.get("inputs", {})
        model = inputs.get("model")
        # Other models may sample what was made with this one. Inversion has no prompt.
        samples = _is_link(model) and str(model[0]) in behind
        if not samples or node.get("class_type") == _INVERSION:
            continue
        for name in _POSITIVE:
            link = inputs.get(name)
            if _is_link(link):
                texts = list(_texts(graph, str(link[0])))
                if not texts or any(text is None or _WILDCARD.search(text) for text in texts):
                    return None
                found.append("\n".join(text for text in texts if text is not None))
    return found or None


def missing_words(wanted: str, prompts: Iterable[str] | None) -> list[str]:
    """The words of `wanted` that one of the prompts lacks, without articles and the like; none if
    the prompts are not known."""
    words = [word for word in dict.fromkeys(_words(wanted)) if word not in FILLERS]
    known = [set(_words(prompt)) for prompt in prompts or ()]
    return [word for word in words if any(word not in prompt for prompt in known)]


def _words(text: str) -> list[str]:
    return _WORD.findall(_TAGS.sub(" ", text).casefold())


def _behind(graph: Graph, node_id: str) -> Iterator[str]:
    """The nodes to which a node's MODEL is passed on, not those that use what it generated."""
    followers: dict[str, list[str]] = {}
    for name, node in graph.items():
        for given, value in node.get("inputs", {}).items():
            if _is_link(value) and ("model" in given or not _OTHER.search(given)):
                followers.setdefault(str(value[0]), []).append(name)
    seen, waiting = {node_id}, [node_id]
    while waiting:
        for other in followers.get(waiting.pop(), ()):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
                yield other


def _texts(graph: Graph, node_id: str) -> Iterator[str | None]:
    """The texts of a node, or of the nodes before it; None for one that is not known yet."""
    seen, waiting = set[str](), [node_id]
    while waiting:
        current = waiting.pop()
        node = graph.get(current)
        if node is None or current in seen:
            continue
        seen.add(current)
        inputs = node.get("inputs", {})
        own = {name: inputs[name] for name in _TEXTS if name in inputs}
        for value in own.values():
            if isinstance(value, str):
                yield value
            elif _is_link(value):
                yield _value(graph, str(value[0]))
        if not own:
            waiting += [
                str(value[0])
                for name, value in inputs.items()
                if _is_link(value) and not _OTHER.search(name)
            ]


def _value(graph: Graph, node_id: str) -> str | None:
    """The text of a node that only holds one, and not, for example, the name of a file."""
    inputs = graph.get(node_id, {}).get("inputs", {})
    values = [inputs[name] for name in _TEXTS if isinstance(inputs.get(name), str)]
    return values[0] if len(values) == 1 == len(inputs) else None


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
