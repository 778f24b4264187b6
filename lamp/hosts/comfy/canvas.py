"""Lines of text below a node on the canvas, and how code far from any node reaches them."""

from __future__ import annotations

import sys
from typing import Any

from ...plain import log, plain, plain_lines


def running_server() -> Any:
    """The host's server; None where nodes run without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def say_below(node_id: str | None, text: str) -> None:
    """Show a text below a node, where there is a server to show it.

    Some front ends draw it as HTML and others as it is, and it may hold names from files.
    """
    server = running_server()
    if server is not None and node_id is not None:
        shown = plain_lines(text).replace("<", "\u2039").replace(">", "\u203a")
        server.send_progress_text(shown, plain(node_id))


def warn_below_running_node(text: str) -> None:
    """Write a warning to the log, and show it below the node that runs now, which may be a sampler
    of the host, after its earlier ones. A node that samples several times says it once."""
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    if _warned[:1] != [context]:
        _warned[:] = [context]
    if context is not None and text in _warned:
        return
    log.warning("LAMP: %s", text)
    if context is None:
        return
    _warned.append(text)
    say_below(context.node_id, "LAMP: " + "\n".join(_warned[1:]))


# The host's context of the last node that was warned of, which is a new one in every run, and the
# warnings.
_warned: list[Any] = []
