"""The result of running a graph on a ComfyUI server: events, outputs, errors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]

# Binary websocket frames: an event number, then the payload.
_PREVIEWS = (1, 4)
_TEXT = 3


class PromptRejected(RuntimeError):
    """The server refused a graph before running it."""

    def __init__(self, answer: Mapping[str, Any]):
        error = answer.get("error", {})
        self.error: dict[str, Any] = error if isinstance(error, dict) else {"message": str(error)}
        self.node_errors: dict[str, Any] = dict(answer.get("node_errors") or {})
        lines = [_describe(self.error)]
        for node, found in self.node_errors.items():
            for one in found["errors"]:
                lines.append(f"node {node} ({found['class_type']}): {_describe(one)}")
        super().__init__("\n".join(filter(None, lines)))


def _describe(error: Mapping[str, Any]) -> str:
    parts = [str(error.get(key) or "") for key in ("message", "details")]
    return ": ".join(dict.fromkeys(part for part in parts if part))


@dataclass
class NodeError:
    node_id: str
    node_type: str
    message: str
    exception_type: str
    traceback: str


@dataclass
class RunResult:
    """The result of one queued graph."""

    prompt_id: str
    status: str = ""  # success, error or interrupted
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # node id -> its ui output
    executed: list[str] = field(default_factory=list)  # nodes that ran, in order
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node id, value, maximum
    texts: dict[str, list[str]] = field(default_factory=dict)  # progress texts under a node
    previews: int = 0
    error: NodeError | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "success"

    def check(self) -> RunResult:
        """Returns itself.

        Raises:
            RuntimeError: the run did not succeed.
        """
        if self.error is not None:
            where = f"node {self.error.node_id} ({self.error.node_type})"
            raise RuntimeError(f"{where}: {self.error.message}\n{self.error.traceback}")
        if not self.ok:
            raise RuntimeError(f"the run ended as {self.status!r}")
        return self

    def files(self, node_id: str | None = None) -> list[dict[str, str]]:
        """The files that nodes saved or previewed, as dicts for `ComfyServer.view`."""
        nodes = [node_id] if node_id is not None else list(self.outputs)
        lists = [value for node in nodes for value in self.outputs.get(node, {}).values()]
        items = [item for found in lists if isinstance(found, list) for item in found]
        return [item for item in items if isinstance(item, dict) and "filename" in item]

    def record(self, event: Event) -> None:
        """Add one websocket event."""
        kind, data = event["type"], event["data"]
        if kind == "preview":
            self.previews += 1
            return
        if kind == "progress_text":
            self.texts.setdefault(data["node"], []).append(data["text"])
            return
        if data.get("prompt_id") != self.prompt_id:
            return
        if kind == "execution_cached":
            self.cached = list(data["nodes"])
        elif kind == "executing" and data["node"] is not None:
            self.executed.append(data["node"])
        elif kind == "executed" and data["output"]:
            self.outputs[data["node"]] = data["output"]
        elif kind == "progress":
            self.progress.append((data["node"], data["value"], data["max"]))
        elif kind == "execution_success":
            self.status = "success"
        elif kind == "execution_interrupted":
            self.status = "interrupted"
        elif kind == "execution_error":
            self.status = "error"
            self.error = NodeError(
                node_id=data["node_id"],
                node_type=data["node_type"],
                message=data["exception_message"].strip(),
                exception_type=data["exception_type"],
                traceback="".join(data["traceback"]),
            )


def read_binary(message: bytes) -> Event | None:
    """A binary websocket frame as an event; None for kinds that nobody uses."""
    kind = struct.unpack(">I", message[:4])[0]
    if kind in _PREVIEWS:
        return {"type": "preview", "data": message[8:]}
    if kind == _TEXT:
        length = struct.unpack(">I", message[4:8])[0]
        node, text = message[8 : 8 + length].decode(), message[8 + length :].decode()
        return {"type": "progress_text", "data": {"node": node, "text": text}}
    return None
