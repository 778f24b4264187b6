"""Files, links, commands, options, nodes and workflows named in the documents exist."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from lamp.cli import COMMANDS
from lamp.cli.train_config import TABLES
from scripts.assets import setting_tables
from scripts.server.host import ROOT
from scripts.setup_host import read_toml

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob(".github/*.md"),
    ]
)
GUIDES = [page for page in PAGES if page.name not in ("CHANGELOG.md", "PULL_REQUEST_TEMPLATE.md")]
TWINS = [page for page in PAGES if page.name.endswith(".zh.md")]
PLACE = re.compile(r"`(lamp/[\w/]+\.py)` `(\w+)`")
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
TOY = " - toy, no download"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(text: str) -> str:
    """All code of a page: blocks, indented lines and inline code."""
    blocks = re.findall(r"^ *```\w*\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    bare = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = re.findall(r"^    +(.+)$", bare, re.MULTILINE)
    inline = [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", bare)]
    return "\n".join([*blocks, *indented, *inline])


# --- links ----------------------------------------------------------------------------------------


def links(text: str) -> set[str]:
    return set(re.findall(r"\]\(([^)]+)\)", text))


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {
        "".join(c for c in title.lower().replace(" ", "-") if kept(c))
        for title in (re.sub(r"[`*]", "", title) for title in titles)
    }


def kept(character: str) -> bool:
    return character in "-_" or unicodedata.category(character)[0] in "LN"


def lost_links(page: Path) -> Iterator[str]:
    for link in sorted(links(text_of(page))):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        if not target.exists() or anchor and anchor not in anchors(text_of(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    assert list(lost_links(page)) == []


def test_every_page_is_reachable_from_the_readme() -> None:
    waiting, reached = [ROOT / "README.md"], set()
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        waiting += [page.parent / link.split("#")[0] for link in links(text_of(page))]
    assert [name_of(page) for page in PAGES if page not in reached and page in GUIDES] == []


def test_links_into_the_repository_resolve() -> None:
    """Full addresses, as issue forms need them."""
    files = [*ROOT.glob(".github/**/*.yml"), *GUIDES]
    named = re.compile(r"github\.com/lamp-comfy/lamp-motion/blob/main/([\w./-]+)")
    lost = [path for file in files for path in named.findall(text_of(file))]
    assert [path for path in lost if not (ROOT / path).exists()] == []


# --- the README -----------------------------------------------------------------------------------


def workflows_in(page: Path) -> list[str]:
    """First cells of the table of workflows."""
    return re.findall(r"^\| (\d\d [^|]+) \|", text_of(page), re.MULTILINE)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_lists_the_workflows(name: str) -> None:
    there = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    first = [stem for stem in there if stem.startswith("01")]
    assert workflows_in(ROOT / name) == first + [stem for stem in there if TOY not in stem]


def test_the_readme_is_a_landing_page() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= 120


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_named_workflows_exist(page: Path) -> None:
    there = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    named = re.findall(r"\*{1,2}(\d\d [A-Z][^*]+)\*{1,2}", text_of(page))
    assert [name for name in named if " ".join(name.split()) not in there] == []


# --- the Chinese pages ----------------------------------------------------------------------------


def links_in_english(text: str) -> set[str]:
    """Links without anchors, as links to the English pages."""
    return {link.split("#")[0].replace(".zh.md", ".md") for link in links(text)} - {""}


@pytest.mark.parametrize("page", TWINS, ids=name_of)
def test_the_chinese_page_follows_the_english_one(page: Path) -> None:
    twin = page.with_name(page.name.replace(".zh.md", ".md"))
    english, chinese = text_of(twin), text_of(page)
    for pattern in (r"^#+ ", r"^\|.*\|$", r"^\d\. ", r"^- ", r"^    .*\S"):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
    assert page.name in links(english) and twin.name in links(chinese)
    # Each links to pages in its own language.
    assert links_in_english(english) == links_in_english(chinese)


# --- commands, options, files ---------------------------------------------------------------------


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    code = code_of(text_of(page))
    targets = re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    modules = re.findall(r"(?<![\w/])((?:benchmarks|scripts)(?:\.\w+)+)", code)
    commands = {command.NAME for command in COMMANDS}
    lost = [target for target in re.findall(r"\bmake ([a-z-]+)", code) if target not in targets]
    lost += [module for module in modules if importlib.util.find_spec(module) is None]
    lost += [name for name in re.findall(r"-m lamp ([a-z]+)", code) if name not in commands]
    assert lost == []


def options_of(command: str) -> set[str]:
    parser = argparse.ArgumentParser()
    (module,) = (module for module in COMMANDS if command == module.NAME)
    module.add_arguments(parser)
    return {*parser._option_string_actions, "--debug"}


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_options_of_the_command_line_exist(page: Path) -> None:
    lines = re.findall(r"-m lamp ([a-z]+)(.*)", code_of(text_of(page)))
    lost = [
        f"{command} {option}"
        for command, rest in lines
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest)
        if option not in options_of(command)
    ]
    assert lost == []


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_options_of_benchmarks_and_scripts_exist(page: Path) -> None:
    lost = []
    for module, rest in re.findall(
        r"-m ((?:benchmarks|scripts)[\w.]*\w)(.*)", code_of(text_of(page))
    ):
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        source = "".join(text_of(file) for file in sources_of(Path(spec.origin)))
        lost += [o for o in re.findall(r"(?<!\S)--[a-z0-9-]+", rest) if f'"{o}"' not in source]
    assert lost == []


def sources_of(origin: Path) -> list[Path]:
    """Source files of a module, and of the module that it runs."""
    if origin.name == "__init__.py":
        return sorted(origin.parent.glob("*.py"))
    twin = origin.parent / "toy" / origin.name
    return [origin, *([twin] if twin.exists() else [])]


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_python_imports_from_the_pack_work(page: Path) -> None:
    named = re.findall(
        r"\bfrom ((?:lamp|tests|scripts)[\w.]*) import (\w+)", code_of(text_of(page))
    )
    for module, name in named:
        assert hasattr(importlib.import_module(module), name), (module, name)


@pytest.mark.parametrize("name", ["command_line.md", "command_line.zh.md"])
def test_the_tables_of_settings_match_the_configuration(name: str) -> None:
    text = text_of(ROOT / "docs" / name)
    for table, keys in TABLES.items():
        (rows,) = re.findall(rf"^\| `\[{table}\]` \|.*\n\|-.*\n((?:\|.*\n)+)", text, re.MULTILINE)
        cells = [row.split("|")[1] for row in rows.splitlines()]
        assert sorted(re.findall(r"`(\w+)`", " ".join(cells))) == sorted(keys.model_fields), table


def test_the_texts_of_settings_are_those_of_the_code() -> None:
    for page, language in setting_tables.pages().items():
        text = text_of(page)
        assert setting_tables.filled(text, language) == text, f"{page}: run setting_tables"


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_named_files_of_the_project_exist(page: Path) -> None:
    tops = "benchmarks|docs|lamp|locales|nodes|scripts|subgraphs|tests|web|workflows"
    named = re.findall(rf"`((?:{tops}|\.github)/[^`\s<>]*)`", text_of(page))
    plain = {path for path in named if not re.search(r"[A-Z*]{2}|\*", path)}
    assert [path for path in sorted(plain) if not (ROOT / path).exists()] == []


# --- nodes and settings ---------------------------------------------------------------------------


def definitions(language: str) -> dict[str, dict[str, object]]:
    return json.loads(text_of(ROOT / "locales" / language / "nodeDefs.json"))


def table_after(text: str, heading: str) -> list[list[str]]:
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return rows[1:]


@pytest.mark.parametrize(("name", "heading"), [("nodes.md", "Nodes"), ("nodes.zh.md", "节点")])
def test_the_page_of_nodes_lists_every_node(name: str, heading: str) -> None:
    listed = [row[0] for row in table_after(text_of(ROOT / "docs" / name), heading)]
    english, chinese = (definitions(language) for language in ("en", "zh"))
    titles = {str(node["display_name"]) for node in english.values()}
    if name.endswith(".zh.md"):
        titles = {
            f"{chinese[key]['display_name']}（{node['display_name']}）"
            for key, node in english.items()
        }
    assert sorted(listed) == sorted(titles)


def test_the_settings_on_the_page_of_nodes_exist() -> None:
    by_title = {str(node["display_name"]): node for node in definitions("en").values()}
    rows = table_after(text_of(ROOT / "docs" / "nodes.md"), "Settings and the paper")
    named = [re.fullmatch(r"`(\w+)` \((.+)\)", row[0]) for row in rows if row[0].startswith("`")]
    assert named and all(named)
    for match in filter(None, named):
        for title in match[2].split(", "):
            inputs = by_title[title]["inputs"]
            assert isinstance(inputs, dict) and match[1] in inputs, match[0]


# --- the method -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", sorted(set(PLACE.findall(METHOD))), ids=" ".join)
def test_places_named_by_the_method_page_exist(place: tuple[str, str]) -> None:
    file, name = place
    assert re.search(rf"^(def|class) {name}\b", text_of(ROOT / file), re.MULTILINE)


def test_rows_of_the_method_page_name_code() -> None:
    """Except the row that names a workflow, and the tolerances."""
    head, tables = "", []
    for line in METHOD.splitlines():
        if line.startswith("## "):
            head = line
        elif line.startswith("| ") and not line.endswith("| Code |"):
            tables.append((head, line))
    rows = [row for head, row in tables if "Parity" not in head]
    without = [row for row in rows if not PLACE.search(row)]
    assert len(without) == 1 and re.search(r"\*\*08 [^*]+\*\*", without[0])


def test_the_architecture_page_names_every_folder() -> None:
    """Top-level folders of a clone."""
    text = text_of(ROOT / "docs" / "architecture.md")
    tracked = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"]
    assert [name for name in tracked if name != "build" and f"`{name}/`" not in text] == []


def drawn_imports() -> set[tuple[str, str]]:
    """Arrows of the drawing, by the first lines of the boxes."""
    text = text_of(ROOT / "docs" / "architecture.md").split("```mermaid")[1].split("```")[0]
    names = dict(re.findall(r'(\w+)\["([\w/]+)', text))
    arrows = re.findall(r"(\w+)(?:\[[^]]*\])? --> (\w+)", text)
    assert len(arrows) == text.count("-->")
    return {(names[a], names[b]) for a, b in arrows}


def real_imports() -> set[tuple[str, str]]:
    graph = grimp.build_graph("lamp", cache_dir=None)
    everyones = {"lamp.errors", "lamp.plain", "lamp.settings"}
    parts = graph.find_children("lamp") - {"lamp.hosts"} - everyones
    parts |= graph.find_children("lamp.hosts")
    for part in parts:
        graph.squash_module(part)
    return {
        (a.removeprefix("lamp.").replace(".", "/"), b.removeprefix("lamp.").replace(".", "/"))
        for a in parts - {"lamp.__main__"}
        for b in graph.find_modules_directly_imported_by(a) & parts - {a}
    }


def test_the_drawing_shows_every_import_of_the_packages() -> None:
    drawn = reachable = drawn_imports()
    while True:
        wider = reachable | {(a, d) for a, b in reachable for c, d in drawn if b == c}
        if wider == reachable:
            break
        reachable = wider
    real = real_imports()
    assert len(real) > 20 and real - reachable == set()
    assert {pair for pair in drawn - real if pair[0] != "nodes"} == set()


def test_the_drawing_follows_the_enforced_layers() -> None:
    contracts = read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    floor = {name: n for n, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    pairs = [(a.split("/")[0], b.split("/")[0]) for a, b in drawn_imports() if a != "nodes"]
    assert [pair for pair in pairs if floor[pair[0]] >= floor[pair[1]]] == []
    assert {name for pair in pairs for name in pair} == set(floor) - {"errors", "plain", "settings"}
