"""Write the texts that repeat the node schemas: `python -m scripts.assets.locales`.

Needs `make setup`. Run it after every change to a node's schema or to locales/zh.

- locales/en: the front end shows it in place of the schemas' own texts.
- The sections "Inputs" and "Outputs" of the help pages in web/docs: from the schemas in English,
  from locales/zh in Chinese. The rest of each page is written by hand.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.server.host import ROOT, HostMissing, load_pack, make_base_directory, use_host

FOLDER = ROOT / "locales"
HELP = ROOT / "web" / "docs"
NODES = "nodeDefs.json"
MAIN = "main.json"
_SHORT_MENU = 6  # longer ones are the host's samplers and schedulers, or files


# --- locale files -------------------------------------------------------------------------------


def locale_files(nodes: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """File name -> content, in English, for node classes with V3 schemas."""
    schemas = sorted((node.GET_SCHEMA() for node in nodes), key=lambda schema: schema.node_id)
    parts = sorted({part for schema in schemas for part in schema.category.split("/")})
    return {
        NODES: {schema.node_id: _node(schema) for schema in schemas},
        MAIN: {"nodeCategories": {part: part for part in parts}},
    }


def stored(language: str, name: str) -> dict[str, Any]:
    """The content of a locale file."""
    return json.loads((FOLDER / language / name).read_text(encoding="utf-8"))


def as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_message(text: str) -> str:
    """Escape the characters that the front end's message format reads as placeholders or links."""
    return re.sub(r"[{}@$|]", lambda found: f"{{'{found[0]}'}}", text)


def as_plain(message: str) -> str:
    """The inverse of `as_message`."""
    return re.sub(r"\{'([{}@$|])'\}", r"\1", message)


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
    return {"name": as_message(_name(field)), "tooltip": as_message(field.tooltip or "")}


def _name(field: Any) -> str:
    return field.display_name or field.id


# --- help pages ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """The words of a language around the texts."""

    inputs: str
    outputs: str
    colon: str
    none: str
    options: str
    between: str
    default: str


WORDS = {
    "en": Words(
        "Inputs",
        "Outputs",
        colon=": ",
        none="None.",
        options=" Options: {}.",
        between=", ",
        default=" Default: `{}`.",
    ),
    "zh": Words(
        "输入",
        "输出",
        colon="：",
        none="无。",
        options="选项：{}。",
        between="、",
        default="默认 `{}`。",
    ),
}


def help_pages(node_id: str) -> dict[str, str]:
    """Language -> the node's help page below `web/docs`.

    The front end asks for ID/LANGUAGE.md, then for ID.md: English is what other languages get.
    """
    return {"en": f"{node_id}.md", "zh": f"{node_id}/zh.md"}


def with_fields(page: str, schema: Any, definition: dict[str, Any], language: str) -> str:
    """A help page with the lists of a node's inputs and outputs, in place of those it has.

    Lists, because the front end's side panel is too narrow for tables.

    Args:
        definition: the node's texts in that language, as in NODES.
    """
    words = WORDS[language]
    inputs = [(field, definition["inputs"][field.id]) for field in schema.inputs or []]
    outputs = [
        (field, definition["outputs"][str(number)])
        for number, field in enumerate(schema.outputs or [])
    ]
    for heading, fields in ((words.inputs, inputs), (words.outputs, outputs)):
        section = f"## {heading}\n\n{_list(fields, words)}\n"
        page, count = re.subn(
            rf"^## {heading}\n.*?(?=^## |\Z)",
            lambda _, s=section: s + "\n",
            page,
            flags=re.M | re.S,
        )
        if count != 1:
            raise ValueError(f"{schema.node_id}, {language}: {count} sections '{heading}', not 1")
    return page.rstrip("\n") + "\n"


def _list(fields: list[tuple[Any, dict[str, str]]], words: Words) -> str:
    if not fields:
        return words.none
    rows = []
    for field, texts in fields:
        own, name = f"`{_name(field)}`", as_plain(texts["name"])
        label = own if name == _name(field) else f"{name} {own}"
        text = as_plain(texts["tooltip"])
        text += _options(field, text, words) + _default(field, words)
        rows.append(f"- {label}{words.colon}{text}")
    return "\n".join(rows)


def _options(field: Any, text: str, words: Words) -> str:
    """The values of a short menu, unless the text names them."""
    values = [str(value) for value in getattr(field, "options", None) or []]
    if len(values) > _SHORT_MENU or all(value in text for value in values) or _is_file(field):
        return ""
    return words.options.format(words.between.join(f"`{value}`" for value in values))


def _default(field: Any, words: Words) -> str:
    """The default of a number, menu or switch."""
    value = getattr(field, "default", None)
    if getattr(field, "options", None) and value is None:
        value = field.options[0]
    if value is None or value == "" or field.id == "seed" or _is_file(field):
        return ""
    return words.default.format(str(value).lower() if isinstance(value, bool) else value)


def _is_file(field: Any) -> bool:
    """Whether a menu lists files or folders, which differ between computers."""
    return field.id in ("motion_name", "folder", "resume", "start_from")


# --- writing ------------------------------------------------------------------------------------


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
        nodes = _node_classes()
    for name, content in locale_files(nodes).items():
        _write(FOLDER / "en" / name, as_text(content))
    for language in WORDS:
        definitions = stored(language, NODES)
        for node in nodes:
            schema = node.GET_SCHEMA()
            path = HELP / help_pages(schema.node_id)[language]
            page = path.read_text(encoding="utf-8")
            _write(path, with_fields(page, schema, definitions[schema.node_id], language))
    return 0


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    sys.exit(main())
