"""Write the English texts of the nodes: `python -m scripts.assets.locales`, after `make setup`.

ComfyUI's front end shows them, in locales/en, in place of the schemas' own; the other languages
must have the same keys. They are made from the schemas so that the two never differ.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.server.host import ROOT, HostMissing, load_pack, make_base_directory, use_host

FOLDER = ROOT / "locales"
HELP = ROOT / "web" / "docs"
NODES = "nodeDefs.json"
MAIN = "main.json"


def locale_files(nodes: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """File name -> content, in English, for node classes with V3 schemas."""
    schemas = sorted((node.GET_SCHEMA() for node in nodes), key=lambda schema: schema.node_id)
    parts = sorted({part for schema in schemas for part in schema.category.split("/")})
    return {
        NODES: {schema.node_id: _node(schema) for schema in schemas},
        MAIN: {"nodeCategories": {part: part for part in parts}},
    }


def help_pages(node_id: str) -> dict[str, str]:
    """Language -> the node's help page below `web/docs`.

    The front end asks for ID/LANGUAGE.md, then for ID.md: English is what other languages get.
    """
    return {"en": f"{node_id}.md", "zh": f"{node_id}/zh.md"}


def as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_message(text: str) -> str:
    """Escape what the front end's message format would take for placeholders and links."""
    return re.sub(r"[{}@$|]", lambda found: f"{{'{found[0]}'}}", text)


def _node(schema: Any) -> dict[str, Any]:
    texts = {"display_name": schema.display_name, "description": schema.description}
    definition: dict[str, Any] = {key: as_message(text) for key, text in texts.items()}
    inputs = {field.id: _field(field) for field in schema.inputs or []}
    outputs = {str(index): _field(field) for index, field in enumerate(schema.outputs or [])}
    if inputs:
        definition["inputs"] = inputs
    if outputs:
        definition["outputs"] = outputs
    return definition


def _field(field: Any) -> dict[str, str]:
    return {
        "name": as_message(field.display_name or field.id),
        "tooltip": as_message(field.tooltip or ""),
    }


def _node_classes() -> list[Any]:
    package = load_pack()
    importlib.import_module(f"{package.__name__}.nodes")

    async def listed() -> list[Any]:
        return await (await package.comfy_entrypoint()).get_node_list()

    return asyncio.run(listed())


def main() -> int:
    with tempfile.TemporaryDirectory() as base:
        try:
            use_host(make_base_directory(Path(base)))
        except HostMissing as error:
            print(error, file=sys.stderr)
            return 1
        files = locale_files(_node_classes())
    for name, content in files.items():
        path = FOLDER / "en" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(content), encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
