"""Write the bundled workflows: `python -m scripts.make_workflows`, after `make setup`.

Each graph of the modules workflow_*.py becomes workflows/NAME.json, which the canvas
opens, and workflows/api/NAME.json, which POST /prompt takes. A real server tells what the nodes
have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.comfy_server import ComfyServer
from scripts.host import ROOT, HostMissing
from scripts.workflow_edit import edit_video
from scripts.workflow_format import Graph, ObjectInfo, api_prompt, canvas
from scripts.workflow_graphs import animate_image, text_to_video, train_motion
from scripts.workflow_toy import toy_train_and_generate

FOLDER = ROOT / "workflows"
API = "api"  # the canvas' template browser does not look into sub-folders


def all_graphs() -> list[Graph]:
    return [
        text_to_video(),
        animate_image(),
        edit_video(),
        train_motion(),
        toy_train_and_generate(),
    ]


def workflow_files(infos: ObjectInfo) -> dict[str, str]:
    """Path below `workflows` -> text."""
    files = {}
    for graph in all_graphs():
        files[f"{graph.name}.json"] = _text(canvas(graph, infos))
        files[f"{API}/{graph.name}.json"] = _text(api_prompt(graph, infos))
    return files


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def load_api(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """A bundled workflow as POST /prompt takes it."""
    return json.loads((folder / API / f"{name}.json").read_text(encoding="utf-8"))


def main() -> int:
    try:
        with ComfyServer() as server:
            files = workflow_files(server.object_info())
    except HostMissing as error:
        print(error, file=sys.stderr)
        return 1
    for name, text in files.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
