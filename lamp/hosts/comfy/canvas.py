"""Lines of text below a node on the canvas, and how code far from any node reaches them."""

from __future__ import annotations

import sys
from typing import Any

from ...plain import log, plain, plain_lines


def running_server() -> Any:
    """The host's server; None where nodes run without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def say_below(node_id: str | None, text: str) -> None:
    """Show a text below a node, where there is a server to show it."""
    server = running_server()
    if server is not None and node_id is not None:
        server.send_progress_text(plain_lines(text), plain(node_id))


def warn_below_running_node(text: str) -> None:
    """Write a warning to the log, and show it below the node that runs now, which may be a sampler
    of the host."""
    log.warning("LAMP: %s", text)
    say_below(_running_node(), f"LAMP: {text}")


def _running_node() -> str | None:
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:  # of the host's tests, or another host
        return None
    context = get_executing_context()
    return None if context is None else context.node_id
