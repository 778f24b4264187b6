"""Write the training settings into docs/command_line: `python -m scripts.assets.setting_tables`.

The rows of the settings are made from `lamp.training.recipe` in English and from locales/zh in
Chinese. Other rows and cells stay. The help pages are filled by `scripts.assets.locales`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from lamp.training.recipe import RunChoices, SaveConfig, TrainConfig
from scripts.assets.locales import NODES, as_plain, stored
from scripts.server.host import ROOT

TRAINING = ("LAMP_Trainer", "LAMP_TrainingRecipe")
INPUTS = {"preset": "recipe", "keep": "keep_states", "sample_guidance": "sample_cfg"}
"""Inputs of the nodes with another id than their setting."""
OPTIONS = {"en": (" Options: ", ", ", "."), "zh": ("选项：", "、", "。")}

# The line of a table's header, then of its rows: label and key, other cells, text.
_TABLE = re.compile(r"^\| `\[(?:recipe|output)\]` \|.*\n\|-.*\n(?:\|.*\n)+", re.M)
_ROW = re.compile(r"^(\|[^|\n]*`(\w+)` (?:\| [^|\n]*)?)\| ([^|\n]*) \|$", re.M)


def pages() -> dict[Path, str]:
    """Page -> its language."""
    return {
        ROOT / f"docs/command_line{end}": lang for end, lang in ((".md", "en"), (".zh.md", "zh"))
    }


def filled(text: str, language: str) -> str:
    """A page with the texts of its settings."""
    known = _texts(language)

    def row(found: re.Match[str]) -> str:
        return f"{found[1]}| {known.get(found[2], found[3])} |"

    return _TABLE.sub(lambda found: _ROW.sub(row, found[0]), text)


def _texts(language: str) -> dict[str, str]:
    """Key and input id -> text."""
    chinese = _chinese()
    texts: dict[str, str] = {}
    settings: list[Any] = [*fields(TrainConfig), *fields(SaveConfig), *fields(RunChoices)]
    for each in settings:
        name = INPUTS.get(each.name, each.name)
        text = each.metadata.get("help") if language == "en" else chinese.get(name)
        if not text:
            continue
        if each.metadata["choices"]:
            begin, between, end = OPTIONS[language]
            text += begin + between.join(f"`{value}`" for value in each.metadata["choices"]) + end
        texts |= {each.name: text, name: text}
    return texts


def _chinese() -> dict[str, str]:
    definitions = stored("zh", NODES)
    return {
        name: as_plain(field["tooltip"])
        for node in TRAINING
        for name, field in definitions[node]["inputs"].items()
    }


def main() -> int:
    for page, language in pages().items():
        text = filled(page.read_text(encoding="utf-8"), language)
        page.write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
