"""Write the bundled workflows: `python -m scripts.make_workflows`, after `make setup`.

Each graph of the modules workflow_*.py becomes workflows/TITLE.json, which the canvas
opens, and workflows/api/NAME.json, which POST /prompt takes; the blueprint becomes
subgraphs/NAME.json. A real server tells what the nodes have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.server.host import ROOT, HostMissing
from scripts.server.server import ComfyServer
from scripts.workflow_blueprint import NAME, blueprint
from scripts.workflow_compare import train_and_compare
from scripts.workflow_edit import edit_video
from scripts.workflow_evaluate import evaluate
from scripts.workflow_format import Graph, ObjectInfo, api_prompt, canvas
from scripts.workflow_graphs import animate_image, text_to_video, train_motion
from scripts.workflow_longer import extend_video, long_video_windows
from scripts.workflow_stock import custom_sampling, few_steps
from scripts.workflow_toy import toy_train_and_generate
from scripts.workflow_toy_twin import on_toy_model

FOLDER = ROOT / "workflows"
API = "api"  # the canvas' template browser does not look into sub-folders
BLUEPRINT = ROOT / "subgraphs" / f"{NAME}.json"


def all_graphs() -> list[Graph]:
    """Every bundled workflow, but for the twins, in the order of use."""
    return [
        toy_train_and_generate(),
        animate_image(),
        train_motion(),
        text_to_video(),
        extend_video(),
        long_video_windows(),
        few_steps(),
        edit_video(),
        custom_sampling(),
        train_and_compare(),
        evaluate(),
    ]


def twin_graphs() -> list[Graph]:
    """The workflows on the toy model; that of training is the toy workflow itself."""
    trains = {"lamp_toy_train_and_generate", "lamp_train_motion", "lamp_train_and_compare"}
    return [on_toy_model(graph) for graph in all_graphs() if graph.name not in trains]


def titles() -> dict[str, str]:
    """Name -> title of every bundled workflow, twins too."""
    return {graph.name: graph.title for graph in [*all_graphs(), *twin_graphs()]}


def workflow_files(infos: ObjectInfo) -> dict[str, str]:
    """Path below the repository -> text."""
    files = {BLUEPRINT: blueprint(infos)}
    for graph in [*all_graphs(), *twin_graphs()]:
        files[FOLDER / f"{graph.title}.json"] = canvas(graph, infos)
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
    for stale in [*FOLDER.glob("*.json"), *(FOLDER / API).glob("*.json")]:
        if stale.relative_to(ROOT).as_posix() not in files:
            stale.unlink()
    for name, text in files.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
