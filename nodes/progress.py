"""The progress bar of a node and the text below it."""

from __future__ import annotations

from typing import Any

from ..lamp.hosts.comfy.canvas import say_below
from ..lamp.plain import log

_PREVIEW_SIZE = 512  # pixels of the longer side


class NodeProgress:
    """Progress on the canvas. `update` raises when the user has pressed cancel."""

    def __init__(self, node_id: str | None) -> None:
        self._node_id = node_id
        self._bar: Any = None
        self.warnings: list[str] = []

    def update(self, done: int, total: int, picture: Any = None) -> None:
        """Move the bar, with a PIL image as the node's preview.

        Raises the host's InterruptProcessingException after a cancel, so that long loops stop.
        """
        import comfy.model_management as management
        import comfy.utils

        if self._bar is None or self._bar.total != total:
            self._bar = comfy.utils.ProgressBar(total, node_id=self._node_id)
        preview = None if picture is None else ("JPEG", picture, _PREVIEW_SIZE)
        self._bar.update_absolute(done, total, preview)
        management.throw_exception_if_processing_interrupted()

    def announce(self, text: str) -> None:
        """Show a line of text below the node and write it to the log."""
        log.info("LAMP: %s", text)
        self.say(text)

    def warn(self, text: str) -> None:
        """Show a warning below the node, after those before it, and write it to the log."""
        log.warning("LAMP: %s", text)
        self.warnings.append(text)
        self.say("\n".join(self.warnings))

    def say(self, text: str) -> None:
        """Show a line of text below the node, where there is a server to show it."""
        say_below(self._node_id, text)


def image_and_text(picture: Any, text: str, node: type[Any]) -> dict[str, Any]:
    """The `ui` of a node that shows an IMAGE and a text; `web/results.js` draws the text."""
    from comfy_api.latest import ui

    return {**ui.PreviewImage(picture, cls=node).as_dict(), **ui.PreviewText(text).as_dict()}


def duration(seconds: float) -> str:
    """`12 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
