"""Write the bundled workflows: `python -m scripts.make_workflows`, after `make setup`.

Each graph of the modules workflow_*.py becomes workflows/NAME.json, which the canvas
opens, and workflows/api/NAME.json, which POST /prompt takes; the blueprint becomes
subgraphs/NAME.json. A real server tells what the nodes have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.comfy_server import ComfyServer
from scripts.host import ROOT, HostMissing
from scripts.workflow_blueprint import NAME, blueprint
from scripts.workflow_compare import train_and_compare
from scripts.workflow_edit import edit_video
from scripts.workflow_evaluate import evaluate
from scripts.workflow_format import Graph, ObjectInfo, api_prompt, canvas
from scripts.workflow_graphs import animate_image, text_to_video, train_motion
from scripts.workflow_longer import extend_video, long_video_windows
from scripts.workflow_stock import custom_sampling, few_steps
from scripts.workflow_toy import toy_train_and_generate

FOLDER = ROOT / "workflows"
API = "api"  # the canvas' template browser does not look into sub-folders
BLUEPRINT = ROOT / "subgraphs" / f"{NAME}.json"


def all_graphs() -> list[Graph]:
    return [
        text_to_video(),
        animate_image(),
        edit_video(),
        extend_video(),
        long_video_windows(),
        few_steps(),
        custom_sampling(),
        train_motion(),
        train_and_compare(),
        evaluate(),
        toy_train_and_generate(),
    ]


def workflow_files(infos: ObjectInfo) -> dict[str, str]:
    """Path below the repository -> text."""
    files = {BLUEPRINT: blueprint(infos)}
    for graph in all_graphs():
        files[FOLDER / f"{graph.name}.json"] = canvas(graph, infos)
        files[FOLDER / API / f"{graph.name}.json"] = api_prompt(graph, infos)
    return {path.relative_to(ROOT).as_posix(): _text(content) for path, content in files.items()}


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
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
