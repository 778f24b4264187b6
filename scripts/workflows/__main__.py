"""Refresh the bundled workflows after a change: `python -m scripts.workflows`, after `make setup`.

Brings every node of workflows/*.json up to date with the server's nodes (new inputs get their
defaults), gives the toy twins the graphs of their originals, and writes workflows/api/*.json.
Places, sizes, titles, notes and groups stay as the front end saved them. Prints what changed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.server.host import ROOT, HostMissing
from scripts.server.server import ComfyServer
from scripts.workflows import API, TITLES, TWINS, canvas_file, load_canvas
from scripts.workflows.convert import ObjectInfo, to_canvas, to_prompt
from scripts.workflows.toy import on_toy


def refreshed(infos: ObjectInfo) -> dict[Path, str]:
    """Path -> text of every workflow file, as this server's nodes want it."""
    files = {}
    for name in TITLES:
        layout = load_canvas(name)
        original = TWINS.get(name)
        prompt = to_prompt(layout if original is None else load_canvas(original), infos)
        canvas = to_canvas(on_toy(prompt) if original else prompt, layout, infos)
        files[canvas_file(name)] = _text(canvas)
        files[API / f"{name}.json"] = _text(to_prompt(canvas, infos))
    return files


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    try:
        with ComfyServer() as server:
            files = refreshed(server.object_info())
    except HostMissing as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in files.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
