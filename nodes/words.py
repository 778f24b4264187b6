"""A warning before a run whose prompts lack the words of a motion, which then acts weakly.

Nodes with unchanged inputs do not run again, so the check is made for every prompt that is queued.
"""

from __future__ import annotations

from typing import Any

from ..lamp.errors import LampError
from ..lamp.hosts.comfy.canvas import running_server
from ..lamp.motion_file.config import read_config
from ..lamp.motion_file.file import read_header
from ..lamp.plain import log, plain
from .graph import missing_words, prompts_below
from .model_paths import motion_path

EVENT = "lamp.missing_words"
"""Sent to the page that queued the prompt, with `motion` and `words`; web/motions.js shows it."""
LOADER = "LAMP_LoadMotion"


def watch_prompts() -> None:
    """Check every prompt that the server queues; without a server, do nothing."""
    server = running_server()
    if server is None:
        return

    def check(request: Any) -> Any:
        for motion, words in missing_in(request.get("prompt")):
            text = {"motion": plain(motion, 100), "words": plain(", ".join(words), 100)}
            log.warning("The prompt lacks words of the motion %(motion)s: %(words)s.", text)
            server.send_sync(EVENT, text, request.get("client_id"))
        return request

    server.add_on_prompt_handler(check)


def missing_in(prompt: Any) -> list[tuple[str, list[str]]]:
    """The motions of a prompt's loaders, and the words that the prompts of their samplers lack.

    Args:
        prompt: as it was posted, before any check.
    """
    nodes = prompt if isinstance(prompt, dict) else {}
    graph = {
        name: node
        for name, node in nodes.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    found = []
    for name, node in graph.items():
        motion = node["inputs"].get("motion_name")
        if node.get("class_type") == LOADER and isinstance(motion, str):
            missing = missing_words(_trigger(motion), prompts_below(graph, name))
            found += [(motion, missing)] if missing else []
    return found


def _trigger(name: str) -> str:
    """The words of a motion; none if the loader will report that it cannot be read."""
    try:
        path = motion_path(name)
        return read_config(path.name, read_header(path)).trigger
    except LampError:
        return ""
